"""The head of a `.npy` stream, so that its array can be checked before memory is taken, and never unpickled; and
reading no more than is there, whatever a head promises."""

from __future__ import annotations

from typing import IO

import numpy as np

_STEP = 1 << 20  # bytes read at a time


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array whose elements follow in `stream`, in C order.

    Raises ValueError for what is not an array, holds Python objects or is in Fortran order.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version[0]}.{version[1]} is not read here")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except Exception as e:  # numpy parses it as Python, and lets through whatever that raises
        raise ValueError(" ".join(str(e).split()) or type(e).__name__) from e
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {shape} has a negative size")
    if dtype.hasobject:
        raise ValueError("an array of Python objects would have to be unpickled")
    if fortran and len(shape) > 1:
        raise ValueError("the array is in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype


def read_up_to(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes, or fewer if the stream ends; takes memory as they come, not as they are promised."""
    parts = []
    while size > 0 and (part := stream.read(min(size, _STEP))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
