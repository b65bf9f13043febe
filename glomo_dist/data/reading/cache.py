"""Checked ids of shards on the local disk, shared by all readers, ranks and runs of a machine, of bounded size.

CACHE/KEY.ids      the ids of a shard end to end, then their SHA-256; there only when whole and checked
CACHE/KEY.lock     held while the ids are made; its time is when they were last asked for
CACHE/KEY.*.tmp    ids being made, already as large as they will be; left only by a process that was killed
CACHE/.lock        held while room is made

A reader holds a shared lock on the file it reads; what is so held is never deleted. Many processes share a cache at
any time, so on a file system without locks it is refused (runtime/locks.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from glomo_dist.runtime.errors import GlomoError, describe
from glomo_dist.runtime.locks import Lock, take
from glomo_dist.runtime.paths import user_cache
from glomo_dist.runtime.progress import say

_OURS = re.compile(r"[0-9a-f]{40}\.(ids|[0-9a-f]{8}\.tmp)")  # all else in the folder is somebody else's
_DIGEST = 32  # bytes of SHA-256 behind the ids
_POLL = 0.05  # seconds between looks at a lock that another process holds
NO_FILES_LEFT, MORE_FILES = (errno.EMFILE, errno.ENFILE), "Allow more open files (ulimit -n)."


def default_folder() -> Path:
    """glomo/shards in the user's cache folder."""
    return user_cache("shards")


class Damaged(Exception):
    """The bytes of a file in the cache are not those that were written."""


class Ids:
    """The ids of a shard, mapped from a file in the cache and held in it until `close`.

    ids: unsigned integers [units], not to be used after `close`.
    """

    def __init__(self, descriptor: int, dtype: np.dtype, units: int) -> None:
        self._descriptor = descriptor
        size = units * dtype.itemsize
        if os.fstat(descriptor).st_size != size + _DIGEST:
            raise Damaged("its size is wrong")
        self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        self._written = self._times()
        content = memoryview(self._map)
        good = hashlib.sha256(content[:size]).digest() == content[size:]
        content.release()
        if not good:
            raise Damaged("its SHA-256 is wrong")
        self.ids = np.frombuffer(self._map, dtype, units)

    def _times(self) -> tuple[int, int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def changed(self) -> bool:
        """Whether the file was written to since it was checked: what was taken from it meanwhile is worth nothing."""
        return self._times() != self._written

    def close(self) -> None:
        self.ids = np.zeros(0, self.ids.dtype)
        with contextlib.suppress(BufferError):  # a view of it lives on: the map ends with that
            self._map.close()
        os.close(self._descriptor)


class ShardCache:
    """limit: bytes that all files together may take.  patience: seconds to wait for another process."""

    def __init__(self, folder: Path, limit: int, patience: float) -> None:
        self.folder, self._limit, self._patience = folder, limit, patience
        with self.using():
            self._make_folder()
            (folder / ".lock").touch()

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(
        self, key: str, dtype: np.dtype, units: int, make: Callable[[BinaryIO], bytes], release: Callable[[], bool],
        name: str,
    ) -> Ids:  # fmt: skip
        """The ids `key`: those that are there, or else made, by one process at a time.

        key: 40 hexadecimal digits.
        make: writes all ids from the beginning of the file that it is given, and returns their SHA-256.
        release: called when there is no room; gives back something of the caller's own and says whether it could.
        name: of the shard, in errors.
        Raises whatever `make` raises, GlomoError for a folder that cannot be read or written or is too small.
        """
        with self.using(f" for {name}"):
            return self._open(key, dtype, units, make, release)

    def _open(
        self, key: str, dtype: np.dtype, units: int, make: Callable[[BinaryIO], bytes], release: Callable[[], bool]
    ) -> Ids:  # fmt: skip
        path, size = self.folder / f"{key}.ids", units * dtype.itemsize + _DIGEST
        until = time.monotonic() + self._patience
        while True:
            if (found := self._present(path, dtype, units)) is not None:
                return found
            self._make_folder()  # somebody may have cleared ~/.cache
            with self._held(path.with_suffix(".lock"), until, f"to make {path}"):
                if path.exists():
                    continue  # another process has made it meanwhile
                for left in self.folder.glob(f"{key}.*.tmp"):
                    left.unlink(missing_ok=True)  # of a process that was killed: the lock is ours
                temporary = self._room(path.with_name(f"{key}.{uuid.uuid4().hex[:8]}.tmp"), size, release)
                try:
                    with open(temporary, "r+b") as file:
                        file.write(make(file))
                    with contextlib.suppress(FileNotFoundError):  # cleared meanwhile: once more
                        os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)

    def _present(self, path: Path, dtype: np.dtype, units: int) -> Ids | None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with contextlib.ExitStack() as unless_found:
            unless_found.callback(os.close, descriptor)
            # only held otherwise for the moment of deleting it
            _locked(descriptor, path, shared=True, wait=True)
            if not os.fstat(descriptor).st_nlink:
                return None
            try:
                found = Ids(descriptor, dtype, units)
            except Damaged as e:
                say(f"WARNING: {path} was damaged ({e}); it is made again")
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                        path.unlink()
                return None
            unless_found.pop_all()
        with contextlib.suppress(OSError):
            os.utime(path.with_suffix(".lock"))
        return found

    def _room(self, temporary: Path, size: int, release: Callable[[], bool]) -> Path:
        """An empty file of `size` bytes, after deleting what was not used for longest until it fits."""
        until = time.monotonic() + self._patience
        while True:
            with self._held(self.folder / ".lock", until, f"to make room in {self.folder}"):
                if self._make_room(size):
                    try:
                        with open(temporary, "xb") as file:
                            os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now
                    except OSError:
                        temporary.unlink(missing_ok=True)
                        raise
                    return temporary
            if not release():
                if size > self._limit or time.monotonic() > until:
                    raise GlomoError(
                        f"the cache {self.folder} may hold {self._limit:,} bytes; a shard of {size:,} bytes does not "
                        "fit beside those in use. Allow it more (reading.cache_gb)."
                    )
                time.sleep(_POLL)

    def _make_room(self, size: int) -> bool:
        """Under the folder's lock: delete until `size` more bytes fit; False if what is in use leaves no room."""
        files: list[tuple[float, int, Path]] = []
        for file in filter(lambda file: _OURS.fullmatch(file.name), self.folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if file.suffix == ".tmp" and self._orphan(file):
                    file.unlink()
                else:
                    lock = file.with_suffix(".lock")
                    used = (lock if lock.exists() else file).stat().st_mtime
                    files.append((used, file.stat().st_size, file))
        total = sum(length for _, length, _ in files)
        for _, length, file in sorted(files):
            if total + size <= self._limit:
                break
            if file.suffix == ".ids" and _delete_unused(file):
                total -= length
        return total + size <= self._limit

    def _orphan(self, temporary: Path) -> bool:
        """Whether nobody is making this file: its lock is free."""
        try:
            descriptor = os.open(temporary.with_name(f"{temporary.name.partition('.')[0]}.lock"), os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            return _locked(descriptor, temporary)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _held(self, path: Path, until: float, purpose: str) -> Iterator[None]:
        """The lock file `path`, as soon as no other process holds it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _locked(descriptor, path):
                if time.monotonic() > until:
                    raise GlomoError(
                        f"another process has held {path} for {self._patience:g} s {purpose}. End it, or use another "
                        "folder (reading.cache)."
                    )
                time.sleep(_POLL)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def using(self, purpose: str = "") -> Iterator[None]:
        """What the system refuses within it is refused to the cache."""
        try:
            yield
        except OSError as e:
            advice = "Free space, or name another folder (reading.cache)."
            if e.errno in NO_FILES_LEFT:
                advice = MORE_FILES
            raise GlomoError(
                f"cannot use the cache of shards {self.folder}{purpose}: {describe(e)}. {advice}"
            ) from e


def _locked(descriptor: int, path: Path, *, shared: bool = False, wait: bool = False) -> bool:
    """Whether the lock of `path` is ours now, as `take`; GlomoError where there are none."""
    lock = take(descriptor, shared=shared, wait=wait)
    if lock is Lock.UNSUPPORTED:
        raise GlomoError(
            f"{path} cannot be locked: its file system has no locks (flock), and processes that share a cache of "
            "shards need them. Name a folder on a local disk (reading.cache)."
        )
    return lock is Lock.HELD


def _delete_unused(path: Path) -> bool:
    """Delete a file unless somebody reads it; True if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _locked(descriptor, path):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
