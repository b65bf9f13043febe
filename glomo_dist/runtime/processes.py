"""What this process may use, and what one that it starts must be told."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores() -> int:
    """Processor cores this process may use: those it is bound to, and no more than its container has time on.

    More threads than that would be stopped together for the rest of each tenth of a second.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, cores_of_control_groups())))


def cores_of_control_groups(root: Path = Path("/")) -> float:
    """Seconds of processor time per second that Linux's control groups, of either version, leave; else infinity.

    Of a container its own group is often the only one to be seen, so the groups above count wherever they are there.
    """
    least = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else ".")
            groups = PurePosixPath(path.lstrip("/"))
            for group in (groups, *groups.parents):
                least = min(least, _quota(top / group))
    return least


def _quota(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        if (both := group / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and float(quota) > 0:
            return float(quota) / float(period)
    return math.inf


def import_path() -> str:
    """A PYTHONPATH by which a Python started here finds what this one finds, installed or not."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def same_imports() -> dict[str, str]:
    """What to set in the environment of a Python started here so that it finds what this one finds, and nothing else:
    with `-m` it would look into the current folder first, where a file of the user may be called random.py."""
    return {"PYTHONPATH": import_path(), "PYTHONSAFEPATH": "1"}  # the latter from Python 3.11 on


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
