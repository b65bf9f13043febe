"""Who may write to a run folder: one run at a time."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glomo_dist.runtime import files
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.locks import Lock, take, unguarded


@dataclass(frozen=True)
class Claim:
    """The right to write to a run folder, until another run takes it.

    The lock alone does not hold everywhere: a network file system may keep locks within one host. So the newest
    run also leaves its mark in the lock file, and every run looks for its own before it changes the checkpoints.
    """

    lock: Path
    mark: str

    def check(self) -> None:
        """Raises GlomoError if another run has come since, or the folder has gone."""
        try:
            found = self.lock.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            raise GlomoError(
                f"{self.lock} is gone: {self.lock.parent} was moved or deleted while the run was at work, which "
                "stops. Run the same command again, with the folder in its place to continue."
            ) from None
        except OSError:
            found = ""
        if found != self.mark:
            raise GlomoError(
                f"another run has taken {self.lock.parent} ({_owner(found)}); this one stops and leaves the "
                "checkpoints to it. Run each in a folder of its own."
            )


def _owner(mark: str) -> str:
    words = mark.split()
    return f"process {words[1]} on {words[0]}, since {words[2]}" if len(words) == 4 else "unknown"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[Claim]:
    """Hold the run folder: a second program in it gets a GlomoError. Freed even by kill -9."""
    path = out / files.LOCK
    with files.writing(path, "Choose another output folder."):
        out.resolve().mkdir(parents=True, exist_ok=True)  # also where a link points to what is not there yet
        # without a buffer, of which closing would try to write once more what did not go in
        lock = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed below)
    with lock:
        with files.writing(path, "Choose another output folder."):
            taken = take(lock)
        if taken is Lock.BUSY:
            lock.seek(0)
            owner = _owner(lock.read().decode(errors="replace"))
            raise GlomoError(
                f"another run is writing to {out} ({owner}). Wait until it ends, or choose another output folder."
            )
        if taken is Lock.UNSUPPORTED:
            unguarded(out, "take care that no second run uses it.")
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        claim = Claim(path, f"{socket.gethostname()} {os.getpid()} {since} {uuid.uuid4().hex}")
        with files.writing(path, "Free space on the disk."):
            lock.truncate(0)
            lock.write(claim.mark.encode())
        yield claim
