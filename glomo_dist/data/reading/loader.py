"""Batches for one rank: a slice of the global order, read ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from glomo_dist.data.reading.ahead import ReadAhead
from glomo_dist.data.reading.config import Reading
from glomo_dist.data.reading.gather import Library, Request
from glomo_dist.data.reading.order import Pieces, WindowOrder, Windows
from glomo_dist.data.reading.reader import ReaderInProcess, ReaderProcess, ShardReader
from glomo_dist.data.shards.index import ShardIndex
from glomo_dist.data.shards.ragged import filled_to, starts_of
from glomo_dist.data.shards.tarsamples import sample_key
from glomo_dist.runtime.errors import ConfigError, ShardError


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

    The state of the stream is the step alone (and the shards set aside by then), and the union over ranks does not
    depend on `world`. window, windows, seed: see `WindowOrder`.
    library: what its readers know of the shards.
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
        reading: Reading | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ConfigError(f"rank must be in 0..{world - 1} for world size {world}, got {rank}.")
        if global_batch < 1 or global_batch % world:
            raise ConfigError(
                f"global_batch {global_batch} is not a positive multiple of the number of ranks {world}. "
                f"Use e.g. {max(1, round(global_batch / world)) * world}."
            )
        self.index = index
        self.order = WindowOrder(index, window, seed, windows=windows)
        self._global_batch, self._rank, self._world = global_batch, rank, world
        self._reading = reading or Reading()
        names = tuple(shard.name for shard in index.shards)
        self.library = Library(index.folder, names, index.vocab_size, self._reading)
        self._set_aside: dict[int, int] = {}

    def set_aside(self, shard: int, from_step: int) -> None:
        """From step `from_step` on use other rows instead of those of `shard` (its number)."""
        self._set_aside[shard] = min(from_step, self._set_aside.get(shard, from_step))

    def batch(self, step: int) -> Batch:
        """The batch of step `step` (from 0); the same whenever and however often it is asked for."""
        with contextlib.closing(self.batches([step])) as one:
            return next(one)

    def batches(self, steps: Iterable[int]) -> Generator[Batch, None, None]:
        """The batches of these steps, each read when it is asked for, by the calling thread."""
        reader = ReaderInProcess(self.library, self.index)
        try:
            for step in steps:
                yield self._read(reader, step)
        finally:
            reader.close()

    def iterate(self, from_step: int = 0) -> Generator[Batch, None, None]:
        """Batches of step `from_step`, `from_step` + 1, ... without end, read ahead by `reading.readers` processes.

        An error while reading (BadShard, a reader that was killed) is raised here, after the batches before it.
        Closing the iterator ends the readers; they also end when this process does, however it ends.
        """
        ahead = ReadAhead(self._readers(), self._read, from_step, self._reading.prefetch)
        try:
            while True:
                yield ahead.next()
        finally:
            ahead.close()

    def _readers(self) -> list[ShardReader]:
        if not self._reading.readers:
            return [ReaderInProcess(self.library, self.index)]
        return [ReaderProcess(self.library, self.index) for _ in range(self._reading.readers)]

    def _read(self, reader: ShardReader, step: int) -> Batch:
        numbers, pieces = self._plan(step)
        lengths = np.bincount(pieces.row, pieces.length).astype(np.int64)
        request = Request(
            len(numbers),
            int(lengths.max()),
            self.index.shard_of_sample[pieces.sample].astype(np.int64),
            self.index.units_before[pieces.sample] + pieces.start,
            pieces.length,
            pieces.row,
        )
        tokens = torch.from_numpy(reader.read(request).astype(np.int64))
        segments = None
        if self.order.kind == "packed":
            segments = torch.from_numpy(_segments(pieces, lengths, request.width))
        return Batch(tokens, torch.from_numpy(lengths), torch.from_numpy(numbers), segments, pieces)

    def _plan(self, step: int) -> tuple[np.ndarray, Pieces]:
        """Numbers of this rank's rows, and what they are made of, without the shards that are set aside by then.

        A packed row goes without its windows of such shards; a row with nothing left is replaced by a spare one.
        """
        first = step * self._global_batch
        numbers = np.arange(first, first + self._global_batch, dtype=np.int64)[self._rank :: self._world]
        pieces = self.order.pieces(numbers)
        bad = np.array([shard for shard, since in self._set_aside.items() if since <= step], np.int64)
        if not bad.size:
            return numbers, pieces
        pieces = self._without(pieces, bad)
        spares = []
        for row in np.setdiff1d(np.arange(len(numbers)), pieces.row).tolist():
            for attempt in range(1000):
                spare = self._without(
                    self.order.pieces(np.array([self.order.spare(int(numbers[row]), attempt)])), bad
                )
                if len(spare.row):
                    spares.append(spare._replace(row=spare.row + row))
                    break
            else:
                raise ShardError(
                    f"{self.index.folder}: too few good shards are left; {len(bad)} are set aside."
                )
        return numbers, Pieces.joined([pieces, *spares])

    def _without(self, pieces: Pieces, bad: np.ndarray) -> Pieces:
        return pieces.take(~np.isin(self.index.shard_of_sample[pieces.sample], bad))

    def keys(self, batch: Batch) -> list[list[SampleKey]]:
        """For each row of `batch` where its units come from: one entry, or one per document of a packed row."""
        found: list[list[SampleKey]] = [[] for _ in range(len(batch.lengths))]
        for row, sample, start, length in zip(*(a.tolist() for a in batch.pieces), strict=True):
            shard = self.index.shards[int(self.index.shard_of_sample[sample])].name
            found[row].append(SampleKey(shard, sample_key(sample), start, length))
        return found


def _segments(pieces: Pieces, lengths: np.ndarray, width: int) -> np.ndarray:
    """See `Batch.segments`."""
    in_row = np.bincount(pieces.row)
    number = np.arange(len(pieces.row)) - np.repeat(starts_of(in_row)[:-1], in_row)
    segments = np.full((len(lengths), width), -1, np.int64)
    segments[filled_to(lengths, width)] = np.repeat(number, pieces.length)
    return segments
