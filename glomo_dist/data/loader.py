"""Batches for one rank: a slice of the global order, read ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from glomo_dist.data.index import ShardIndex, read_sample, sample_key
from glomo_dist.data.order import Pieces, WindowOrder, Windows
from glomo_dist.data.ragged import ranges, starts_of
from glomo_dist.runtime.errors import ConfigError


class SampleKey(NamedTuple):
    """Where units of a batch come from: units `start` .. `start` + `length` - 1 of sample `key` in `shard`."""

    shard: str
    key: str
    start: int
    length: int


@dataclass(frozen=True)
class Batch:
    """Sequences of one rank and step.

    tokens: int64 [B, T], zero after each length; lengths: int64 [B]; ids: int64 [B], numbers in the order.
    segments: int64 [B, T], of packed rows: the number (0, 1, ...) of each unit's document, -1 after each length.
        None: each row is one document.
    pieces: what the rows are made of, see `Stream.keys`.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    ids: torch.Tensor
    segments: torch.Tensor | None
    pieces: Pieces


class Stream:
    """The batches of rank `rank` of `world`. Step s of the run is numbers s * global_batch .. of the order.

    The state of the stream is the step alone, and the union over ranks does not depend on `world`.
    window, windows, seed: see `WindowOrder`.
    prefetch: batches read ahead.  cache_bytes: decoded samples kept, since a long one gives many windows.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        window: int,
        seed: int,
        global_batch: int,
        windows: Windows = "fixed",
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
        cache_bytes: int = 64 << 20,
    ) -> None:
        if not 0 <= rank < world:
            raise ConfigError(f"rank must be in 0..{world - 1} for world size {world}, got {rank}.")
        if global_batch < 1 or global_batch % world:
            raise ConfigError(
                f"global_batch {global_batch} is not a positive multiple of the number of ranks {world}. "
                f"Use e.g. {max(1, round(global_batch / world)) * world}."
            )
        if prefetch < 1:
            raise ConfigError(f"prefetch must be at least 1 batch, got {prefetch}.")
        self.index = index
        self.order = WindowOrder(index, window, seed, windows=windows)
        self._global_batch, self._rank, self._world, self._prefetch = global_batch, rank, world, prefetch
        self._cache = _SampleCache(index, cache_bytes)

    def batch(self, step: int) -> Batch:
        """The batch of step `step` (from 0); the same whenever and however often it is asked for."""
        first = step * self._global_batch
        numbers = np.arange(first, first + self._global_batch, dtype=np.int64)[self._rank :: self._world]
        pieces = self.order.pieces(numbers)
        lengths = np.bincount(pieces.row, pieces.length, len(numbers)).astype(np.int64)
        tokens = np.zeros((len(numbers), int(lengths.max())), np.int64)
        column = _columns(pieces)
        for row, at, sample, start, length in zip(
            pieces.row, column, pieces.sample, pieces.start, pieces.length, strict=True
        ):
            tokens[row, at : at + length] = self._cache.get(int(sample))[start : start + length]
        segments = None
        if self.order.kind == "packed":
            segments = torch.from_numpy(_segments(pieces, column, tokens.shape))
        return Batch(
            torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(numbers), segments, pieces
        )

    def keys(self, batch: Batch) -> list[list[SampleKey]]:
        """For each row of `batch` where its units come from: one entry, or one per document of a packed row."""
        found: list[list[SampleKey]] = [[] for _ in range(len(batch.lengths))]
        for row, sample, start, length in zip(*(a.tolist() for a in batch.pieces), strict=True):
            shard = self.index.shards[int(self.index.shard_of_sample[sample])].name
            found[row].append(SampleKey(shard, sample_key(sample), start, length))
        return found

    def iterate(self, from_step: int = 0) -> Iterator[Batch]:
        """Batches of step `from_step`, `from_step` + 1, ... without end, prepared ahead by a thread.

        An error while reading is raised here, after the batches before it. Closing the iterator ends the thread.
        """
        ready: queue.Queue[Batch | BaseException] = queue.Queue(self._prefetch)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._fill, args=(ready, stop, from_step), name="glomo-prefetch", daemon=True
        )
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            while not ready.empty():  # a thread waiting for room sees that it may stop
                ready.get_nowait()
            thread.join()

    def _fill(self, ready: queue.Queue[Batch | BaseException], stop: threading.Event, step: int) -> None:
        while not stop.is_set():
            item: Batch | BaseException
            try:
                item = self.batch(step)
            except BaseException as e:  # handed over, raised in the consumer's thread
                item = e
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            step += 1


def _columns(pieces: Pieces) -> np.ndarray:
    """Where each piece begins in its row: int64 [n]."""
    begun = starts_of(pieces.length)[:-1]
    first_of_row = np.searchsorted(pieces.row, pieces.row)  # the first piece of each piece's row
    return begun - begun[first_of_row]


def _segments(pieces: Pieces, column: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """See `Batch.segments`."""
    number = np.arange(len(pieces.row)) - np.searchsorted(pieces.row, pieces.row)
    segments = np.full(shape, -1, np.int64)
    flat = ranges(pieces.row * shape[1] + column, pieces.length)
    segments.reshape(-1)[flat] = np.repeat(number, pieces.length)
    return segments


class _SampleCache:
    """Least recently used decoded samples up to a number of bytes; safe to use from two threads."""

    def __init__(self, index: ShardIndex, capacity: int) -> None:
        self._index, self._capacity, self._bytes = index, capacity, 0
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sample: int) -> np.ndarray:
        with self._lock:
            if sample in self._kept:
                self._kept.move_to_end(sample)
                return self._kept[sample]
            ids = read_sample(self._index, sample)
            self._kept[sample] = ids
            self._bytes += ids.nbytes
            while self._bytes > self._capacity and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return ids
