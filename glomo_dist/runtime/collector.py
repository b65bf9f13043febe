"""Python's collector of cyclic garbage, which walks over all that PyTorch's import leaves, again and again.

These are 200,000 objects (with DeepSpeed), and none of them is garbage. A rank that does nothing else takes 4.8 s of
processor time on a slow machine, and 3.5 s if the collector looks at them neither then nor at the end.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_ours = False


def this_process_is_ours() -> None:
    """For a program's first line: whatever is there after `importing` stays to the end."""
    global _ours
    _ours = True


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """In the block nothing is collected. In a process of ours the collector never looks at what is there after it:
    what has to be freed at the end comes later."""
    with resting():
        yield
    if _ours:
        gc.freeze()


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """In the block, which makes many objects and no garbage in circles, nothing is collected."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
