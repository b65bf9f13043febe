"""torchrun above a rank. Without it the ranks never become a group, and each would wait half an hour for that."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from glomo_dist.runtime.progress import say

VARIABLE = "GLOMO_LAUNCHER"  # process id of our torchrun, for its ranks: it may die while these import torch
LOOK_SECONDS = 0.5


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Within it a rank that torchrun has started ends once torchrun has ended. Afterwards the watchdog sees to that.

    One that was started otherwise stays: what started it may have left it alone on purpose (nohup).
    """
    parent, done = _torchrun(), threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            if done.wait(LOOK_SECONDS):
                return
        say(f"glomo: rank {os.environ.get('RANK', '0')}: the launcher above it is gone, so it ends")
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _torchrun() -> int | None:
    if VARIABLE in os.environ:
        return int(os.environ[VARIABLE])
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
