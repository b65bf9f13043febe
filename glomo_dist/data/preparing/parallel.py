"""A function over a stream of items in several processes: results in order, few items in flight."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from glomo_dist.runtime.errors import GlomoError, describe
from glomo_dist.runtime.processes import environment

A = TypeVar("A")
B = TypeVar("B")

_AHEAD = 3  # items in flight per worker: enough to keep it busy, little enough to stream


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """`map(function, items)`, by `workers` processes if more than one; errors are raised where they belong."""
    if workers == 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the parent may have threads (network, progress), whose locks a fork would copy.
    with _starting():
        executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _follow)
    with executor as pool:
        pending: deque[Future[B]] = deque()
        try:
            for item in items:
                with _starting():
                    pending.append(pool.submit(function, item))
                if len(pending) >= _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as e:
            raise GlomoError(
                "a worker process died (killed, or out of memory?). Run the command again with fewer --workers."
            ) from e
        finally:
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """In the block processes are started, which import nothing from the current folder (from Python 3.11 on)."""
    try:
        with environment(PYTHONSAFEPATH="1"):
            yield
    except OSError as e:
        raise GlomoError(
            f"a worker process cannot be started: {describe(e)}. Allow more open files and processes (ulimit -n, "
            "ulimit -u), or fewer --workers."
        ) from e


def _follow() -> None:
    """In a worker: the parent decides when to end, and once it has ended, however, so do we (not by ourselves)."""
    for number in (signal.SIGINT, signal.SIGHUP):  # sent to the whole group
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
