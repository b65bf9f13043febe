"""Whether the arrays of a chunk are graphs: a hash only says that they are what the index was written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.graphs.chunks import Arrays
from glomo_dist.graphs.index import DIRECTIONS, EXPORT_AGAIN, GraphStoreError

_MOST = 1.01  # of a row's sum, each weight rounded to float16; less than 1 may be: scores near 0 leave a row lighter
_ONE = 0x3C00  # as bits of float16: all others from 0 to 1 are below, negative and not finite ones above


def require_graphs(path: Path, arrays: Arrays, examples: int, components: int) -> None:
    """GraphStoreError unless these are the arrays of so many examples (see store.py), each edge within its own and on
    the side of its direction.  components: layers x heads."""
    wrong = _units(arrays, examples)
    for direction in DIRECTIONS:
        wrong = wrong or _edges(arrays, direction, components)
    if wrong:
        raise GraphStoreError(f"{path}: {wrong}, so these are no graphs. The file is damaged. {EXPORT_AGAIN}")


def _units(arrays: Arrays, examples: int) -> str:
    """What is wrong with the numbers of units, or nothing."""
    units = arrays.get("units")
    if units is None or units.dtype != np.int64 or units.shape != (examples,):
        return f"expected units int64 [{examples}]{_found(units)}"
    return "negative numbers of units" if units.min(initial=0) < 0 else ""


def _edges(arrays: Arrays, direction: str, components: int) -> str:
    """What is wrong with the graphs of a direction, or nothing."""
    units = arrays["units"]
    names = [f"{direction}.{part}" for part in ("counts", "columns", "weights", "edges")]
    for name, kind in zip(names, (np.integer, np.integer, np.float16, np.int64), strict=True):
        array = arrays.get(name)
        if array is None or array.ndim != 1 or not np.issubdtype(array.dtype, kind):
            return f"expected {name} {kind.__name__} [n]{_found(array)}"
    counts, columns, weights, edges = (arrays[name] for name in names)
    rows = components * np.concatenate([[0], np.cumsum(units)])  # of each example the first
    if len(counts) != rows[-1] or len(weights) != len(columns) or len(edges) != len(units) + 1:
        return f"the {direction} arrays do not fit the units, or each other"
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if counts.min(initial=0) < 0 or offsets[-1] != len(columns) or not np.array_equal(offsets[rows], edges):
        return f"the {direction} edges are not as many as its rows say"
    if weights.view(np.uint16).max(initial=0) > _ONE:
        return f"a {direction} weight is negative or not finite, or above 1"
    if not len(columns):
        return ""
    full, some = counts > 0, np.diff(edges) > 0  # rows and texts with edges
    begin = offsets[:-1][full]
    if np.add.reduceat(weights, begin, dtype=np.float32).max() > _MOST:
        return f"the weights of a {direction} row sum to more than 1"
    each = components * units
    row = ((np.arange(len(counts)) - np.repeat(rows[:-1], each)) % np.repeat(units, each))[full]
    if direction == "forward":
        on_its_side = np.maximum.reduceat(columns, begin) < row
    else:
        on_its_side = np.minimum.reduceat(columns, begin) > row
    last = np.maximum.reduceat(columns, edges[:-1][some])
    if not on_its_side.all() or columns.min() < 0 or (last >= units[some]).any():
        side = "an earlier" if direction == "forward" else "a later"
        return f"a {direction} edge is not to {side} unit of its text"
    return ""


def _found(array: np.ndarray[Any, Any] | None) -> str:
    return ", there are none" if array is None else f", got {array.dtype} {list(array.shape)}"
