"""SIGTERM and SIGUSR1 ask a run to save and stop; so schedulers announce that they will take the machine back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from glomo_dist.runtime.errors import Interrupted
from glomo_dist.runtime.signals import ASKING, as_interrupt

# Of a rank: SIGHUP, of a terminal, is for the program that started it.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopping:
    """While in use, the two signals set `asked` instead of ending the process; the loop looks at it every step.

    A signal that reaches one rank alone counts for all: they agree before the step.
    ends: the process ends after it. The signals are then ignored to its last moment, so that a second one, or the one
        that torchrun sends to the other ranks when the first has ended, does not take the place of its exit code.
    """

    def __init__(self, *, ends: bool = False) -> None:
        self.asked, self._ends = "", ends

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._ends else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name


@contextlib.contextmanager
def ending_at_once(out: object) -> Iterator[None]:
    """While a run into `out` is not training yet, the signals raise Interrupted: nothing is there to be saved.

    Ignored ones (nohup) stay ignored. Outside of the main thread, where Python allows no handlers, nothing changes.
    """
    with as_interrupt(ASKING) as came:
        try:
            yield
        except KeyboardInterrupt:
            if not came:
                raise
            raise Interrupted(
                f"{came[0]} stopped {out} before it began to train. Run the same command again to begin or continue."
            ) from None
