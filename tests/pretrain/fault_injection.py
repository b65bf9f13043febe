"""Faults that are put into a rank from inside: at a file operation, in the data, in a step."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

from glomo_dist.data import Batch, Stream
from glomo_dist.pretrain import loop
from glomo_dist.pretrain.output import state
from glomo_dist.pretrain.settings.resolve import ResolvedRun
from glomo_dist.runtime.errors import ShardError

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def inject(fault: dict[str, Any], rank: int, job: ResolvedRun) -> None:
    """fault: {"rank": which, "kind": name, ...}; other ranks are left as they are.

    kill_at: SIGKILL just before the `number`-th file operation on the checkpoints.  count: write down how many there
    are.  full_at: from the `number`-th on each one that writes fails for want of space.  hang_data, hang_step,
    hang_lock: from step `step` on the read of a batch, the step, or a call that holds the interpreter lock never
    ends.
    slow_step: step `step` takes `seconds`.  bad_data: the batch of step `step` cannot be read.
    no_checkpoint: its files cannot be opened.
    stop_step: SIGSTOP in step `step`.  unwatched: SIGKILL to its watchdog in step `step`, SIGSTOP three steps later.
    """
    if not fault or fault["rank"] != rank:
        return
    kind = fault["kind"]
    if kind in ("kill_at", "count", "full_at"):
        _at_file_operation(fault, job)
    elif kind in ("hang_data", "bad_data"):
        iterate = Stream.iterate

        def spoilt(self: Stream, from_step: int = 0) -> Iterator[Batch]:
            for step, batch in enumerate(iterate(self, from_step), from_step):
                if step >= fault["step"] and kind == "hang_data":
                    time.sleep(1e6)
                if step >= fault["step"]:
                    raise ShardError("shard-00000.tar is damaged (put in by the test)")
                yield batch

        Stream.iterate = spoilt
    elif kind == "no_checkpoint":

        def denied(path: object, framework: str) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        state.safe_open = denied
    elif kind in ("hang_step", "hang_lock", "slow_step", "stop_step", "unwatched"):
        _in_step(fault)
    else:
        raise ValueError(kind)


def _at_file_operation(fault: dict[str, Any], job: ResolvedRun) -> None:
    seen = 0
    folder = str(job.out / "checkpoints")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in FILE_EVENTS or not arguments or folder not in str(arguments[0]):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        seen += 1
        if fault["kind"] == "count":
            sys.stderr.write(f"file operation {seen}: {event} {arguments[0]}\n")
        elif fault["kind"] == "kill_at" and seen == fault["number"]:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault["kind"] == "full_at" and seen >= fault["number"] and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

    sys.addaudithook(hook)


def _in_step(fault: dict[str, Any]) -> None:
    step = loop.train_step
    done = 0

    def stuck(*arguments: Any, **named: Any) -> Any:
        nonlocal done
        done += 1
        if done == fault["step"]:
            if fault["kind"] == "slow_step":
                time.sleep(fault["seconds"])
            elif fault["kind"] == "stop_step":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif fault["kind"] == "unwatched":
                _kill_watchdog()
            elif fault["kind"] == "hang_lock":
                library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
                for _ in range(2):  # the second never returns, with the interpreter lock held
                    library.pthread_mutex_lock(mutex)
            else:
                time.sleep(1e6)
        elif fault["kind"] == "unwatched" and done == fault["step"] + 3:
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1e6)  # it is woken to show its stacks, and is not to end the run meanwhile
        return step(*arguments, **named)

    loop.train_step = stuck


def _kill_watchdog() -> None:
    """Returns when this rank's watchdog is dead, but not yet waited for."""
    (dog,) = [p for p in psutil.Process().children() if "watchdog.py" in " ".join(p.cmdline())]
    dog.kill()
    while dog.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
