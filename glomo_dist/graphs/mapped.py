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
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    start = 8 + length
    if start > data.size:
        raise ValueError("the header is cut off")
    header = json.loads(data[8:start].tobytes())
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"tensor {name!r} has dtype {entry['dtype']}")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        begin, end = entry["data_offsets"]
        if start + end > data.size or end - begin != dtype.itemsize * math.prod(entry["shape"]):
            raise ValueError(f"the data of tensor {name!r} are cut off")
        # The base class, not np.memmap: slicing a memmap costs several microseconds in Python each time.
        raw = np.asarray(data[start + begin : start + end]).view(np.ndarray)
        if (start + begin) % dtype.itemsize:
            raw = raw.copy()
        arrays[name] = raw.view(dtype).reshape(entry["shape"])
    return arrays
