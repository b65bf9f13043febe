"""What a process may use, and what a Python that it starts can import."""

import os
import subprocess
import sys
from pathlib import Path

from glomo_dist.runtime.processes import import_path, usable_cores


def test_a_python_started_elsewhere_finds_what_this_one_found(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "found_here.py").write_text("")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": import_path()}
    command = [sys.executable, "-c", "import found_here"]
    assert subprocess.run(command, env=environment, cwd="/", check=False).returncode == 0


def test_cores_are_those_that_the_process_is_bound_to() -> None:
    bound = sorted(os.sched_getaffinity(0))
    assert usable_cores() == len(bound)
    try:
        os.sched_setaffinity(0, bound[:1])
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, bound)
