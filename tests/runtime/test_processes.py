"""What a process may use, and what a Python that it starts can import."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glomo_dist.runtime import processes
from glomo_dist.runtime.processes import cores_of_control_groups, import_path, same_imports, usable_cores


def test_a_python_started_elsewhere_finds_what_this_one_found(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "found_here.py").write_text("")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": import_path()}
    command = [sys.executable, "-c", "import found_here"]
    assert subprocess.run(command, env=environment, cwd="/", check=False).returncode == 0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python looks into the current folder first")
def test_a_python_started_here_finds_nothing_else(tmp_path: Path, monkeypatch) -> None:
    """A file of the user may be called like a module of Python's own. Where this one looks there, so does that."""
    (tmp_path / "random.py").write_text("")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", "import random; print(random.__file__)"]
    for path, here in ((list(filter(None, sys.path)), False), (["", *sys.path], True)):
        monkeypatch.setattr(sys, "path", path)
        done = subprocess.run(
            command, env={**os.environ, **same_imports()}, check=True, stdout=subprocess.PIPE
        )
        assert (done.stdout.decode().strip() == str(tmp_path / "random.py")) == here


def test_cores_are_those_that_the_process_is_bound_to() -> None:
    bound = sorted(os.sched_getaffinity(0))
    assert usable_cores() == len(bound)
    try:
        os.sched_setaffinity(0, bound[:1])
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, bound)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (  # the least of a group and of those above it
            {
                "proc/self/cgroup": "0::/jobs/one\n",
                "sys/fs/cgroup/jobs/one/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/jobs/cpu.max": "300000 100000\n",
            },
            3,
        ),
        (  # version 1, in a container that sees its own group as the root
            {
                "proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        ({"proc/self/cgroup": "rubbish\n", "sys/fs/cgroup/cpu.max": "1\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1\n"}, math.inf),
    ],
)
def test_cores_of_a_container_are_its_share_of_time(tmp_path: Path, files: dict, cores: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores_of_control_groups(tmp_path) == cores


@pytest.mark.parametrize(("share", "cores"), [(0.5, 1), (1.0, 1), (1.5, 2)])
def test_a_part_of_a_core_counts_as_one(monkeypatch, share: float, cores: int) -> None:
    monkeypatch.setattr(processes, "cores_of_control_groups", lambda: share)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores() == cores
