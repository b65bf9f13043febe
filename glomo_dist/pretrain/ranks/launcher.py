"""The launcher above a rank. Without it the ranks never become a group, and each would wait half an hour for that."""

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
    """Within it this process ends once the one that started it has ended. Afterwards the watchdog sees to that."""
    parent = int(os.environ.get(VARIABLE, os.getppid()))
    done = threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            if done.wait(LOOK_SECONDS):
                return
        say(f"glomo: rank {os.environ.get('RANK', '0')}: the launcher above it is gone, so it ends")
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
