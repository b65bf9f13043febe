"""What this process may use, and what one that it starts must be told."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def usable_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_path() -> str:
    """A PYTHONPATH by which a Python started here finds what this one finds, installed or not."""
    return os.pathsep.join(path for path in sys.path if path)


def started_by_torchrun() -> bool:
    """Whether this process is a rank of a group already (torchrun, or a launcher with the same names)."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """In the block, and in programs started there, these variables have these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
