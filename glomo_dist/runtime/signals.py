"""Signals that ask a program to end, taken as Ctrl-C is."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType


@contextlib.contextmanager
def as_interrupt(numbers: Sequence[signal.Signals]) -> Iterator[list[str]]:
    """Signals of `numbers` raise KeyboardInterrupt in the block; after the first, others change nothing.

    Yields a list to which the name of the one that came is added. A signal that is ignored (nohup) stays so. Only
    Python's main thread can be interrupted: in another one nothing is changed.
    """
    came: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    found = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        came.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    try:
        for number in before:
            signal.signal(number, stop)
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
