"""Signals that ask a program to end: taken as Ctrl-C is, or kept from what must not be left half done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # besides Ctrl-C
# Of what goes on later where it stopped: schedulers announce with SIGUSR1 that they will take the machine back.
ASKING = (*STOP_SIGNALS, signal.SIGUSR1)


@contextlib.contextmanager
def as_interrupt(numbers: Sequence[signal.Signals]) -> Iterator[list[str]]:
    """Signals of `numbers` raise KeyboardInterrupt in the block; after the first, others change nothing.

    Yields a list to which the name of the one that came is added. A signal that is ignored (nohup) stays so. Only
    Python's main thread can be interrupted: in another one nothing is changed.
    """
    came: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        came.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    with _taken(numbers, stop):
        yield came


@contextlib.contextmanager
def held(*, drop: bool = False) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP come after the block, or, with `drop`, not at all: what they ask for is over then.

    Not by a mask: a process of several threads would get them in another one. Outside of Python's main thread, which
    alone they interrupt, nothing is changed.
    """
    came: list[int] = []
    # A handler that is none of Python's could not be put back.
    numbers = [n for n in (signal.SIGINT, *STOP_SIGNALS) if signal.getsignal(n) is not None]
    try:
        with _taken(numbers, lambda number, frame: came.append(number)):
            yield
    finally:
        if came and not drop:
            os.kill(os.getpid(), came[0])


@contextlib.contextmanager
def _taken(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """The handler gets these signals in the block, if it is in the main thread, but for those that are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: old for number in numbers if (old := signal.getsignal(number)) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)
