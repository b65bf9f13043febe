"""The order in which windows of the samples are seen: a pure function of (index, window, seed).

Window number n of a run, n = 0, 1, 2, ..., lies in epoch n // per_epoch. An epoch permutes the shards, takes them
in blocks of a few, and permutes the windows within each block: a reader works in a few files at a time, and every
window comes exactly once an epoch. No state is kept; resuming is asking for a later n.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from glomo_dist.data.index import ShardIndex
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.fingerprint import derive_seed


class Window(NamedTuple):
    """Units `start` .. `start` + `length` - 1 of a sample."""

    sample: int
    start: int
    length: int


class WindowOrder:
    """Windows of `window` units, cut end to end from every sample; a rest of at least two units is a window too.

    A rest of a single unit has nothing to predict and is left out. 24 bytes of memory per window.
    block_shards: shards that are mixed with each other; memory of a reader against quality of the mixing.
    """

    def __init__(self, index: ShardIndex, window: int, seed: int, *, block_shards: int = 8) -> None:
        if window < 2:
            raise ConfigError(f"window must be at least 2 units (one to read, one to predict), got {window}.")
        if block_shards < 1:
            raise ConfigError(f"block_shards must be at least 1, got {block_shards}.")
        self.window_units, self.seed = window, seed
        self._lengths = index.lengths
        counts = index.lengths // window + (index.lengths % window >= 2)
        self._first = np.concatenate(([0], np.cumsum(counts)))  # [samples + 1]: first window of each sample
        self.per_epoch = int(self._first[-1])
        if not self.per_epoch:
            raise DataError(
                f"{index.folder}: no sample has two units or more, so there is nothing to predict."
            )
        self._shard_of_window = np.repeat(index.shard_of_sample, counts)
        self._shards, self._block_shards = len(index.shards), block_shards
        self._epoch_order = lru_cache(maxsize=2)(self._make_epoch_order)

    def window(self, n: int) -> Window:
        """The window with the global number `n`."""
        sample, start, length = self.windows(np.array([n]))
        return Window(int(sample[0]), int(start[0]), int(length[0]))

    def windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """sample, start, length, each int64 [n], of the windows with these global numbers int64 [n]."""
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and numbers.min() < 0:
            raise IndexError(f"window number {numbers.min()} is negative")
        epochs, places = np.divmod(numbers, self.per_epoch)
        inside = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            inside[chosen] = self._epoch_order(int(epoch))[places[chosen]]
        sample = np.searchsorted(self._first, inside, side="right") - 1
        start = (inside - self._first[sample]) * self.window_units
        return sample, start, np.minimum(self.window_units, self._lengths[sample] - start)

    def _make_epoch_order(self, epoch: int) -> np.ndarray:
        """int64 [per_epoch]: a permutation of the windows."""
        shard_rank = np.argsort(np.argsort(_keys(self._shards, derive_seed("shards", self.seed, epoch))))
        block = (shard_rank // self._block_shards)[self._shard_of_window]
        return np.lexsort((_keys(self.per_epoch, derive_seed("windows", self.seed, epoch)), block))


def _keys(n: int, seed: int) -> np.ndarray:
    """uint64 [n] random keys, distinct: numbers `seed` + 1 .. `seed` + n of the SplitMix64 generator.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16. Written out
    because numpy does not promise the same permutation from one version to the next.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
