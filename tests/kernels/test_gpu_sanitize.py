"""What `sanitize` of `make gpu` says, with a compute-sanitizer and kernels that do nothing but end."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))
part = importlib.import_module("gpu.part")
sanitize = importlib.import_module("gpu.sanitize")

FINDS = "exit $2"  # what --error-exitcode says
REFUSES = "echo 'Error: Device not supported'; exit 1"
FAIL = f"exit {part.KERNELS_FAILED}"  # the kernels by themselves, which the checker passes on


@pytest.mark.parametrize(
    "checker,kernels,notes,unclean",
    [
        ("exit 0", 0, ["memcheck: clean", "racecheck: clean"], ""),
        (FINDS, 0, ["memcheck: exit code 9", "racecheck: exit code 9"], "memcheck, racecheck"),
        (REFUSES, 0, ["memcheck: the checker cannot run here: exit code 1", "without a checker: clean"], ""),
        (REFUSES, 1, ["memcheck: the checker cannot", "without a checker: exit code 1"], "without a checker"),
        (FAIL, 0, ["memcheck: exit code 87", "racecheck: exit code 87"], "memcheck, racecheck"),
    ],
)
def test_what_is_a_finding(tmp_path, monkeypatch, checker, kernels, notes, unclean):
    """A checker that refuses the device has found nothing, and the kernels run without it."""
    for name, script in (("compute-sanitizer", checker), ("python", f"exit {kernels}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    this = part.Part(tmp_path, tmp_path / "notes", False, 60.0)
    if unclean:
        with pytest.raises(SystemExit, match=f"^not clean: {unclean}$"):
            sanitize.main(this)
    else:
        sanitize.main(this)
    lines = (tmp_path / "notes").read_text().splitlines()
    assert len(lines) == len(notes) and all(map(str.startswith, lines, notes))
