"""Rows of ids from shards: the shards through the cache, all windows of a shard by one copy."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from glomo_dist.data.reading.cache import MORE_FILES, NO_FILES_LEFT, Ids, ShardCache, default_folder
from glomo_dist.data.reading.config import Reading
from glomo_dist.data.shards.decode import Layout, decode
from glomo_dist.data.shards.ragged import filled_to, starts_of
from glomo_dist.data.shards.tarsamples import id_dtype
from glomo_dist.data.storage.places import Address, Place, attempts, open_place
from glomo_dist.runtime.errors import DataError, GlomoError, ShardError

_OPEN = 16  # shards kept open: two blocks of the order
_SPREAD = 4  # windows are copied in one width; it takes at most this many times the memory of the rows, and once more


class BadShard(ShardError):
    """A shard that cannot be had, or not as the index describes it, after all attempts. shard: its number."""

    def __init__(self, message: str, shard: int = -1) -> None:
        super().__init__(message)
        self.shard = shard


class Request(NamedTuple):
    """Which ids make up a matrix of `rows` x `width`. int64 [n] each, for one window after the other.

    shard: number; start: of the window among all ids of the shard; length; row: does not descend. The windows of a
    row lie end to end from its first column on; every row has at least one.
    """

    rows: int
    width: int
    shard: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class Library:
    """The shards of a folder, as a reader knows them: their names, and the sizes they have all in common."""

    folder: Place
    names: tuple[str, ...]
    vocab_size: int
    reading: Reading

    def to_json(self) -> dict[str, Any]:
        """For a reader process: an address with all that opens it."""
        remote = isinstance(self.folder, Address)
        folder = self.folder.url if isinstance(self.folder, Address) else str(self.folder)
        return {**asdict(self), "folder": folder, "remote": remote}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Library:
        folder = Address(value["folder"]) if value["remote"] else Path(value["folder"])
        return cls(folder, tuple(value["names"]), value["vocab_size"], Reading(**value["reading"]))


class Gatherer:
    """Answers requests from shards that it keeps open.

    layout: gives the index's layout of a shard that is opened.
    """

    def __init__(self, library: Library, layout: Callable[[int], Layout]) -> None:
        self._library, self._layout = library, layout
        reading = library.reading
        folder = Path(reading.cache) if reading.cache is not None else default_folder()
        # another process may be making the shard that this one needs: it has its own time for it
        self._cache = ShardCache(folder, int(reading.cache_gb * 1e9), 2 * reading.retry_seconds + 60)
        self._open: OrderedDict[int, Ids] = OrderedDict()

    def gather(self, request: Request) -> np.ndarray:
        """Ids [rows, width] in the type they are stored in, zero behind the last window of a row.

        Raises BadShard, or GlomoError where the cache cannot be used.
        """
        _, _, shard, start, length, row = request = _even(request)
        windows = np.empty((len(length), int(length.max())), id_dtype(self._library.vocab_size))
        by_shard = np.argsort(shard, kind="stable")
        ascending = shard[by_shard]
        borders = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
        for begin, end in itertools.pairwise((0, *borders.tolist(), len(shard))):
            chosen = by_shard[begin:end]
            self._copy(int(ascending[begin]), start[chosen], windows, chosen)
        inside = filled_to(length, windows.shape[1])
        if len(length) == request.rows:
            return np.multiply(windows, inside, out=windows)
        matrix = np.zeros((request.rows, request.width), windows.dtype)
        lengths = np.bincount(row, length).astype(np.int64)
        matrix[filled_to(lengths, request.width)] = windows[inside]
        return matrix

    def _copy(self, shard: int, start: np.ndarray, windows: np.ndarray, chosen: np.ndarray) -> None:
        """windows[chosen] = what begins at `start` in `shard`, as it was checked."""
        for _ in range(3):
            held = self._shard(shard)
            windows[chosen] = _windows(held.ids, start, windows.shape[1])
            if not held.changed():
                return
            self._open.pop(shard).close()  # written to since it was checked: check again what it is now
        raise GlomoError(
            f"the cache of shard {self._library.names[shard]} is being written to by something else. Use "
            "another folder (reading.cache)."
        )

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _shard(self, number: int) -> Ids:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= _OPEN:
            self._release()
        layout = self._layout(number)
        held = self._cache.open(
            layout.key(),
            id_dtype(layout.vocab_size),
            int(layout.lengths.sum()),
            lambda file: self._make(number, layout, file),
            self._release,
            self._library.names[number],
        )
        self._open[number] = held
        return held

    def _release(self) -> bool:
        """Close the shard that was not used for longest."""
        if not self._open:
            return False
        self._open.popitem(last=False)[1].close()
        return True

    def _make(self, number: int, layout: Layout, file: BinaryIO) -> bytes:
        name = self._library.names[number]
        place = self._library.folder / name

        def attempt(until: float) -> bytes:
            file.seek(0)
            digest = hashlib.sha256()

            def write(ids: memoryview) -> None:
                digest.update(ids)
                with self._cache.using(f" for {name}"):  # not the shard's fault
                    file.write(ids)

            source = open_place(place)
            try:
                decode(source, layout, place, write, until if isinstance(place, Address) else float("inf"))
            finally:
                source.close()
            return digest.digest()

        began = time.monotonic()
        try:
            return attempts(attempt, place, self._library.reading.retry_seconds)
        except DataError as e:
            cause = e.__cause__
            if isinstance(cause, OSError) and cause.errno in NO_FILES_LEFT:  # not the shard's fault
                raise GlomoError(f"{e} {MORE_FILES}") from e
            waited = time.monotonic() - began
            raise BadShard(f"{e}" + (f" ({waited:.0f} s)" if waited > 1 else ""), number) from e


def _even(request: Request) -> Request:
    """The same matrix from windows of similar length: those that are much longer than the others become several."""
    rows, width, shard, start, length, row = request
    limit = _SPREAD * rows * width // len(length)
    if limit >= int(length.max()):
        return request
    parts = -(-length // limit)
    of = np.repeat(np.arange(len(parts)), parts)
    offset = (np.arange(len(of)) - starts_of(parts)[of]) * limit
    return Request(
        rows, width, shard[of], start[of] + offset, np.minimum(limit, length[of] - offset), row[of]
    )


def _windows(ids: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """ids[start : start + width] for each: [n, width]; behind the end of `ids` anything."""
    last = len(ids) - width  # the last place where a whole window begins
    if last < 0:
        return _windows(np.concatenate([ids, np.zeros(-last, ids.dtype)]), start, width)
    every = np.ndarray((last + 1, width), ids.dtype, ids, strides=(ids.itemsize, ids.itemsize))  # no copy
    taken = every[np.minimum(start, last)]
    for i in np.flatnonzero(start > last).tolist():
        end = ids[start[i] :]
        taken[i, : len(end)] = end
    return taken
