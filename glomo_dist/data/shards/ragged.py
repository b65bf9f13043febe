"""Runs of different lengths in flat arrays, without a loop over them."""

from __future__ import annotations

from typing import Any

import numpy as np


def starts_of(sizes: np.ndarray) -> np.ndarray:
    """Where each run begins when they lie end to end, and after the last one their sum: int64 [n + 1]."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """starts[0], ..., starts[0] + sizes[0] - 1, starts[1], ...: int64 [sum of sizes]."""
    firsts = starts_of(sizes)
    places = np.repeat(np.asarray(starts, np.int64) - firsts[:-1], sizes)
    places += np.arange(firsts[-1])
    return places


def filled_to(lengths: np.ndarray, width: int) -> np.ndarray:
    """True in the first lengths[i] places of row i: bool [n, width]."""
    # 16 bits are compared several times as fast
    small: np.dtype[Any] = np.dtype(np.int16 if width < 1 << 15 else np.int64)
    return np.arange(width, dtype=small) < lengths.astype(small)[:, None]
