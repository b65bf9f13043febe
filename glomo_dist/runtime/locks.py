"""Locks of files between processes, by flock(2): the kernel frees them when a process ends, however it ends.

A file system may have none, such as one on a network that is mounted so. One policy for all who lock: what stays
right when one process works alone goes on, with one warning that says what is not guarded (`unguarded`); what many
processes share at any time, the cache of shards, is refused (docs/reliability.md).
"""

from __future__ import annotations

import enum
import errno
import fcntl
import functools
from pathlib import Path
from typing import IO

from glomo_dist.runtime.progress import say

# What flock answers where there are no locks: NFS without its lock service; FUSE and parallel file systems.
_WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Lock(enum.Enum):
    """What came of asking for a lock."""

    HELD = "held"
    BUSY = "held by another process"
    UNSUPPORTED = "the file system has no locks"


def take(file: int | IO[str] | IO[bytes], *, shared: bool = False, wait: bool = False) -> Lock:
    """Ask for the lock of an open file, or of its descriptor; closing that gives the lock back.

    shared: beside others that are shared.  wait: until it is free, never BUSY.
    Raises OSError for what is neither a lock of another process nor a file system without locks.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return Lock.BUSY
    except OSError as e:
        if e.errno not in _WITHOUT:
            raise
        return Lock.UNSUPPORTED
    return Lock.HELD


@functools.cache
def unguarded(folder: Path, care: str) -> None:
    """Say, once, that work in `folder` goes on without a lock. care: what is not guarded, or has to be seen to."""
    say(f"WARNING: the file system of {folder} has no locks (flock): {care}")
