"""What this process may use, and what one that it starts must be told."""

from __future__ import annotations

import os
import sys


def usable_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_path() -> str:
    """A PYTHONPATH by which a Python started here finds what this one finds, installed or not."""
    return os.pathsep.join(path for path in sys.path if path)
