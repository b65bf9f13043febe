"""Work on the next steps while the present one is used: several workers, results in order, few ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Worker(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=Worker)
T = TypeVar("T")


class ReadAhead(Generic[W, T]):
    """Results of `work(worker, step)` for `from_step`, `from_step` + 1, ..., at most `depth` of them ahead.

    Worker i of n does every n-th step, in a thread of its own. An exception is raised by `next` where its result
    would have come.
    """

    def __init__(self, workers: Sequence[W], work: Callable[[W, int], T], from_step: int, depth: int) -> None:
        self._workers, self._work = workers, work
        self._next, self._depth, self._stopped = from_step, max(depth, len(workers)), False
        self._done: dict[int, T | BaseException] = {}
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(
                target=self._run, args=(worker, from_step + i), name="glomo-prefetch", daemon=True
            )
            for i, worker in enumerate(workers)
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> T:
        """The result of the next step, as soon as it is there."""
        with self._changed:
            while self._next not in self._done:
                self._changed.wait()
            result = self._done[self._next]
            if isinstance(result, BaseException):
                raise result
            del self._done[self._next]
            self._next += 1
            self._changed.notify_all()
            return result

    def close(self) -> None:
        """End the threads and close the workers."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.close()
        for thread in self._threads:
            thread.join()

    def _run(self, worker: W, step: int) -> None:
        while True:
            with self._changed:
                while not self._stopped and step >= self._next + self._depth:
                    self._changed.wait()
                if self._stopped:
                    return
            try:
                result: T | BaseException = self._work(worker, step)
            except BaseException as e:  # handed over, raised in the consumer's thread
                result = e
            with self._changed:
                self._done[step] = result
                self._changed.notify_all()
            if isinstance(result, BaseException):
                return
            step += len(self._workers)
