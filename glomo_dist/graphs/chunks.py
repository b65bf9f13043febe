"""How sequences are shared out among files, each of which is computed, written and read as a whole."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]  # of a chunk, by their names in store.py
CHUNK_UNITS = 1 << 18  # of a chunk of a graph store


def chunk_ranges(lengths: np.ndarray[Any, Any], units: int) -> list[tuple[int, int]]:
    """Ranges (first, last + 1) of consecutive sequences with about `units` units each; none where there are none."""
    if not len(lengths):
        return []
    starts = np.flatnonzero(np.diff(np.cumsum(lengths) // units, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True))
