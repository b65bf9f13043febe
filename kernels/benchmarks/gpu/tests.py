"""Every test marked gpu, dealt out to several processes; what fails is run once more alone.

An illegal address in one kernel spoils the device for the whole process, which then ends (results_plugin.py) as one
that crashed has; the tests behind go on in a new one. Tests that there was no time for are rows as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

from gpu.part import ROOT, SPOILED, Part

# Most of the time goes into compiling, one core each.
PROCESSES = max(6, min(12, (os.cpu_count() or 1) - 4))
# Tests of one function in a row. They share compiled kernels, but all of one function may take longer than there is:
# with 8 the last of 12 processes would end after 101 s, with 2 after 82 (a sum of the times that compiling takes).
MOST = 2
# What a test of Triton's kernels, which compiles some, takes more than one of kernels that are built.
COMPILING = 8
STUCK_SECONDS = 60.0  # a process without a result for so long hangs; compiling for one test takes less
COLUMNS = ("test", "outcome", "seconds", "alone", "message")
FOLDER = ROOT / "tests" / "kernels"
# Only the modules with such tests: others may import what is not there.
MARKS = ("mark.gpu", "from triton_here")
FILES = [file for file in sorted(FOLDER.glob("test_*.py")) if any(mark in file.read_text() for mark in MARKS)]
GPU = ["-m", "gpu", *map(str, FILES)]
DRY = [
    "-k", "test_widths or (test_graph_mix_in_float16 and emulator)", "-m", "not gpu",
    "tests/kernels/test_affinity_mix_triton.py", "tests/kernels/test_cuda.py",
]  # fmt: skip


def collect(arguments: list[str]) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the tests cannot be collected:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(" ")]


def weight(tests: list[str]) -> int:
    return sum(COMPILING if "triton" in test.partition("::")[0] else 1 for test in tests)


def deal(tests: list[str], hands: int) -> list[list[str]]:
    """Up to MOST tests of one function together; about the same time in each hand."""
    groups = [list(group) for _, group in groupby(tests, key=lambda test: test.partition("[")[0])]
    runs = [group[n : n + MOST] for group in groups for n in range(0, len(group), MOST)]
    dealt: list[list[str]] = [[] for _ in range(hands)]
    for run in sorted(runs, key=weight, reverse=True):
        min(dealt, key=weight).extend(run)
    return [hand for hand in dealt if hand]


def start(tests: list[str], results: Path) -> subprocess.Popen[bytes]:
    options = ["-q", "-p", "no:cacheprovider", "-p", "gpu.results_plugin", "--tb=short"]
    environment = {**os.environ, "GLOMO_TEST_RESULTS": str(results), "OMP_NUM_THREADS": "2"}
    return subprocess.Popen([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT, env=environment)


def finish(processes: list[subprocess.Popen[bytes]], deadline: float) -> None:
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    kill(processes)


def kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """All at once: each takes a while to give its device back, and one that hangs in the driver may never do it."""
    for process in processes:
        process.kill()
    end = time.monotonic() + 2
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def read(path: Path) -> dict[str, dict[str, str]]:
    """The last row of every test. What is no row was cut off with the process that wrote it."""
    rows = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows[row["test"]] = row
    return rows


def run(hands: list[list[str]], results: Path, deadline: float) -> None:
    """Each hand in a process; where one ends early or hangs, another one goes on behind the test that it was in."""
    running = {start(hand, results): (hand, time.monotonic()) for hand in hands}
    while running and time.monotonic() < deadline:
        time.sleep(0.2)
        for process, (hand, _) in list(running.items()):
            ended = process.poll() is not None
            found = read(results)
            rest = [test for test in hand if test not in found]
            if not ended and len(rest) < len(hand):
                running[process] = rest, time.monotonic()
            if not ended and time.monotonic() - running[process][1] > STUCK_SECONDS:
                kill([process])
                ended = True
            if ended:
                del running[process]
                if process.returncode != SPOILED:
                    rest = rest[1:]  # the first one ended it
                if rest:
                    running[start(rest, results)] = rest, time.monotonic()
    kill(list(running))


def main(part: Part) -> None:
    tests = collect(DRY if part.dry else GPU)
    processes = 2 if part.dry else PROCESSES
    deadline = part.began + part.seconds - 3  # for the table
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first"), Path(folder, "second")
        run(deal(tests, processes), first, deadline - 0.15 * part.seconds)
        found = read(first)
        # What failed, and what ended its process.
        suspects = [test for test in tests if found.get(test, {}).get("outcome", "failed") == "failed"]
        for group in (suspects[n : n + processes] for n in range(0, len(suspects), processes)):
            if part.left() > 5:
                finish([start([test], second) for test in group], deadline)
        alone = read(second)
    counts: dict[str, int] = {}
    with part.table("tests", COLUMNS) as table:
        for test in tests:
            row = {"test": test, "outcome": "not run", "seconds": "", "message": "", **found.get(test, {})}
            again = alone.get(test, {})
            row["alone"] = again.get("outcome", "")
            row["message"] = again.get("message", row["message"])
            table.add(**row)
            outcome = row["alone"] or row["outcome"]
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome not in ("passed", "skipped"):
                part.note(f"{outcome}: {test}")
    part.note(
        f"{len(tests)} tests: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    )
    if set(counts) - {"passed", "skipped"}:
        sys.exit("not all tests passed")
