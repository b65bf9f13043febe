"""The order in which a run sees the samples: a pure function of (index, kind of windows, window, seed).

Row number n of a run, n = 0, 1, 2, ..., is one sequence of a batch: a window of a sample, or with packing several
short ones side by side. An epoch permutes the shards, takes them in blocks of a few, and permutes the rows within
each block: a reader works in a few files at a time, and every window comes exactly once an epoch. No state is kept;
resuming is asking for a later n.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from glomo_dist.data.reading.cutting import Cuts, fixed_cuts, random_cuts, random_keys
from glomo_dist.data.reading.packing import pack, reorder
from glomo_dist.data.shards.index import ShardIndex
from glomo_dist.data.shards.ragged import ranges, starts_of
from glomo_dist.runtime.config import MOST, whole
from glomo_dist.runtime.errors import ConfigError, DataError, suggest
from glomo_dist.runtime.fingerprint import derive_seed

Windows = Literal["fixed", "random", "packed"]
LONGEST_ROW = 2**31 - 1  # lengths of windows are kept in 32 bits


class Pieces(NamedTuple):
    """What rows are made of: units `start` .. `start` + `length` - 1 of `sample`, one after the other in `row`.

    Each int64 [n]; rows count from 0 and do not descend.
    """

    row: np.ndarray
    sample: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def take(self, chosen: np.ndarray) -> Pieces:
        """Those at these places, or where a mask is true."""
        return Pieces(*(array[chosen] for array in self))

    @classmethod
    def joined(cls, parts: Sequence[Pieces]) -> Pieces:
        """All of several, by their rows."""
        if len(parts) == 1:
            return parts[0]
        together = cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return together.take(np.argsort(together.row, kind="stable"))


class _Epoch(NamedTuple):
    """cuts: windows in the order of the rows; first int64 [rows + 1]: of each row in them, None: each is a row;
    block_first int64 [blocks + 1]: of each block in the rows."""

    cuts: Cuts
    first: np.ndarray | None
    block_first: np.ndarray


class WindowOrder:
    """Rows of at most `window` units.

    windows: "fixed" cuts every sample end to end, "random" as the authors do (see `cutting`), "packed" is fixed with
        several short windows of different samples in one row. A window of a single unit has nothing to predict and
        is left out.
    block_shards: shards that are mixed with each other; memory of a reader against quality of the mixing.
    Memory: 48 bytes per window (random: 32) for two epochs, and 16 per packed row.
    """

    def __init__(
        self,
        index: ShardIndex,
        window: int,
        seed: int,
        *,
        windows: Windows = "fixed",
        block_shards: int = 8,
    ) -> None:
        if not 2 <= window <= MOST:
            raise ConfigError(
                f"window must be at least 2 units (one to read, one to predict) and at most {MOST:,}, got {window}."
            )
        if windows not in get_args(Windows):
            raise ConfigError(f"unknown kind of windows {windows!r}.{suggest(windows, get_args(Windows))}")
        whole("block_shards", block_shards, 1)
        if not (index.lengths >= 2).any():
            raise DataError(
                f"{index.folder}: no sample has two units or more, so there is nothing to predict. Prepare the data "
                "again, cut into units that are smaller."
            )
        if min(window, longest := int(index.lengths.max())) > LONGEST_ROW:
            raise ConfigError(
                f"window {window} would make a row of {longest:,} units, as long as the longest sample of "
                f"{index.folder}, at most {LONGEST_ROW:,} are possible. Set a shorter window."
            )
        self.window_units, self.seed, self.kind = window, seed, windows
        self._lengths, self._shard_of_sample = index.lengths, index.shard_of_sample
        self._shards, self._block_shards = len(index.shards), block_shards
        self._fixed = None if windows == "random" else fixed_cuts(index.lengths, window)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._firsts = [0]  # number of the first row of each epoch so far, and of the one after
        self._lock = threading.RLock()

    def epoch_first(self, epoch: int) -> int:
        """The number of the first row of `epoch` (from 0); packed or random epochs differ a little in size."""
        with self._lock:
            while len(self._firsts) <= epoch:
                self._firsts.append(self._firsts[-1] + self._rows_of(len(self._firsts) - 1))
            return self._firsts[epoch]

    @property
    def per_epoch(self) -> int:
        """Rows of the first epoch."""
        return self.epoch_first(1)

    def pieces(self, numbers: np.ndarray) -> Pieces:
        """What the rows with these global numbers, int64 [n], are made of; `row` counts places in `numbers`."""
        numbers = np.asarray(numbers, np.int64)
        parts = [self._pieces_of(epoch, numbers, chosen) for epoch, chosen in self._by_epoch(numbers)]
        return Pieces.joined(parts)

    def _pieces_of(self, epoch: int, numbers: np.ndarray, chosen: np.ndarray) -> Pieces:
        """`pieces` for the places `chosen` in `numbers`, all of one epoch."""
        found = self._epoch_of(epoch)
        places = numbers[chosen] - self.epoch_first(epoch)
        if found.first is not None:
            sizes = found.first[places + 1] - found.first[places]
            chosen, places = np.repeat(chosen, sizes), ranges(found.first[places], sizes)
        return Pieces(chosen, *(array[places].astype(np.int64, copy=False) for array in found.cuts))

    def spare(self, number: int, attempt: int) -> int:
        """Another row to use where row `number` cannot be read: a pure function, near for the first attempts.

        The first 16 attempts draw from the same block of shards, later ones from the whole epoch.
        """
        ((epoch, _),) = self._by_epoch(np.array([number]))
        first, blocks = self.epoch_first(epoch), self._epoch_of(epoch).block_first
        block = bisect_right(blocks.tolist(), number - first) - 1
        begin, end = (blocks[block], blocks[block + 1]) if attempt < 16 else (blocks[0], blocks[-1])
        return first + int(begin) + derive_seed("spare", self.seed, number, attempt) % int(end - begin)

    def filled(self) -> float:
        """Share of the places of the first epoch's rows that hold a unit, if all rows were `window` long."""
        units = int(self._epoch_of(0).cuts.length.sum(dtype=np.int64))
        return units / (self.window_units * self.per_epoch)

    def _by_epoch(self, numbers: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Epochs, and the places in `numbers` that lie in each."""
        if not numbers.size:
            return [(0, np.zeros(0, np.int64))]
        if numbers.min() < 0:
            raise IndexError(f"row number {numbers.min()} is negative")
        with self._lock:
            while self._firsts[-1] <= numbers.max():
                self.epoch_first(len(self._firsts))
            first, last = (bisect_right(self._firsts, int(n)) - 1 for n in (numbers.min(), numbers.max()))
            if first == last:
                return [(first, np.arange(len(numbers)))]
            epochs = np.searchsorted(self._firsts, numbers, side="right") - 1
        return [(int(epoch), np.flatnonzero(epochs == epoch)) for epoch in np.unique(epochs)]

    def _epoch_of(self, epoch: int) -> _Epoch:
        with self._lock:  # made once, however many threads ask
            return self._epoch(epoch)

    def _rows_of(self, epoch: int) -> int:
        if self.kind == "fixed":
            assert self._fixed is not None
            return len(self._fixed.sample)
        if self.kind == "random":
            return len(self._cuts(epoch).sample)
        return int(self._epoch_of(epoch).block_first[-1])

    def _cuts(self, epoch: int) -> Cuts:
        if self._fixed is not None:
            return self._fixed
        seeds = (derive_seed(name, self.seed, epoch) for name in ("window lengths", "window starts"))
        return random_cuts(self._lengths, self.window_units, *seeds)

    def _make_epoch(self, epoch: int) -> _Epoch:
        cuts = self._cuts(epoch)
        shards = np.argsort(random_keys(self._shards, derive_seed("shards", self.seed, epoch)))
        windows_of = np.bincount(self._shard_of_sample[cuts.sample], minlength=self._shards)
        shard_first = starts_of(windows_of)[:-1]  # windows come in the order of the samples, so of the shards
        keys = random_keys(len(cuts.sample), derive_seed("windows", self.seed, epoch))
        parts, sizes, rows = [], [], []
        for number, begin in enumerate(range(0, self._shards, self._block_shards)):
            block = shards[begin : begin + self._block_shards]
            inside = ranges(shard_first[block], windows_of[block])
            inside = inside[np.argsort(keys[inside])]
            if self.kind == "packed":
                documents, first = pack(cuts.length[inside], self.window_units)
                row_keys = random_keys(len(first) - 1, derive_seed("rows", self.seed, epoch, number))
                documents, first = reorder(documents, first, np.argsort(row_keys))
                inside = inside[documents]
                sizes.append(np.diff(first))
            parts.append(inside)
            rows.append(len(sizes[-1]) if sizes else len(inside))
        order = np.concatenate(parts)
        row_first = starts_of(np.concatenate(sizes)) if sizes else None
        return _Epoch(Cuts(*(array[order] for array in cuts)), row_first, starts_of(np.array(rows)))
