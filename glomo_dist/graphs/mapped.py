"""Memory-mapped reading of safetensors files with numpy: a slice touches only its own bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}


def map_safetensors(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read-only arrays of the file at `path`, backed by one memory map.

    Raises ValueError when the bytes are not a whole safetensors file (layout: 8 bytes header length, JSON
    header, data; github.com/huggingface/safetensors), OSError when it cannot be opened.
    """
    return map_with_metadata(path)[0]


def map_with_metadata(path: str | Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """As `map_safetensors`, with what the header says under `__metadata__`."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if start > data.size:
        raise ValueError("the header is cut off")
    try:
        header = json.loads(data[8:start].tobytes())
        metadata = dict(header.pop("__metadata__", {}))
        return {name: _array(data, start, name, entry) for name, entry in header.items()}, metadata
    except (AttributeError, KeyError, RecursionError, TypeError) as e:
        raise ValueError(f"the header is not that of a safetensors file ({e!r:.80})") from None


def _array(data: np.ndarray[Any, Any], start: int, name: str, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The tensor that `entry` of the header describes; the header ends at `start`."""
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {entry['dtype']}")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    begin, end = entry["data_offsets"]
    size = dtype.itemsize * math.prod(entry["shape"])
    if begin < 0 or start + end > data.size or end - begin != size:
        raise ValueError(f"the data of tensor {name!r} are cut off")
    # The base class, not np.memmap: slicing a memmap costs several microseconds in Python each time.
    raw = np.asarray(data[start + begin : start + end]).view(np.ndarray)
    return raw.view(dtype).reshape(entry["shape"])
