"""Times the kernels: python kernels/benchmarks/run.py [--quick] [--only OP] [--rounds N] [--csv FILE]

First every run of a case is compared with the first one; a case that disagrees is reported and not timed. Then
all runs of a case take turns, so that a busy moment hits them alike. Times are milliseconds: the 20th, 50th and
80th percentile; the factor is the median of the first run's time by this one's in the same round; MB is the peak of
memory beyond what is there before. With --csv a row per run is added to FILE after each case, with the machine,
versions and date.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import math
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from cases import OPS, cases
from common import Case, Run
from glomo_kernels import cpu_extension

COLUMNS = (
    "op",
    "shape",
    "run",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "peak_mb",
    "threads",
    "cpu",
    "simd",
    "torch",
    "date",
)


def disagreement(case: Case) -> str | None:
    """What differs by more than rounding between the first run and another, or None."""
    (first, expected), *others = ((name, run()) for name, run in case.runs.items())
    for name, results in others:
        for index, (a, b) in enumerate(zip(results, expected, strict=True)):
            if case.op == "affinity_graph" and 0 < abs(len(a) - len(b)) < 1e-4 * len(b):
                continue  # edges with scores so near theta that rounding decides; what comes after them is moved
            if a.shape != b.shape:
                return f"{name} and {first} differ in the shape of result {index}"
            if torch.bfloat16 in (a.dtype, b.dtype):  # PyTorch rounds scores there: an edge may come or go
                near = bool((a.float() - b.float()).norm() <= 0.5 * b.float().norm())
            else:
                near = torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() or 1))
            if not near:
                return f"{name} and {first} differ in result {index}"
    return None


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run in each round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def peak_memory(run: Run) -> float:
    """MB that `run` takes at most beyond what is there before (Linux; NaN elsewhere), results included."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        run()
        return (status("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        return math.nan


def status(key: str) -> int:
    """kB of a line in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def instructions() -> str:
    """Those of the C++ loops, and of products of bfloat16 and int8 where the machine has any."""
    loaded = cpu_extension.loaded()
    names = loaded.instruction_set(), loaded.bfloat16(), loaded.look()
    return "+".join(dict.fromkeys(filter(None, names)))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of the block ends the program with a sentence that names the file."""
    try:
        yield
    except OSError as e:
        sys.exit(f"--csv {path}: cannot be written ({e.strerror or e}). Name another file.")


def begin_table(path: Path) -> None:
    """Make the file ready for rows: a new or empty one gets its header. SystemExit if it is something else's."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if old and old.splitlines()[0] != ",".join(COLUMNS):
            sys.exit(f"--csv {path}: does not begin with the line {','.join(COLUMNS)}. Name another file.")
        with path.open("a", newline="") as file:
            if not old:
                csv.writer(file).writerow(COLUMNS)
            elif not old.endswith("\n"):
                file.write("\r\n")


def add_row(path: Path, row: Sequence[object]) -> None:
    with writing(path), path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(row)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the sizes of the demo")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", choices=OPS, help="only the cases of this op")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    if options.csv:
        begin_table(options.csv)
    torch.manual_seed(0)

    simd = cpu_extension.missing() or instructions()
    failed = False
    for case in cases(options.quick):
        if options.only not in (None, case.op):
            continue
        print(f"\n{case.op}  {case.shape}", flush=True)
        wrong = disagreement(case)
        if wrong:
            failed = True
            print(f"  not timed: {wrong}")
            continue
        runs = {**case.runs, **case.peers}
        memory = {name: peak_memory(run) for name, run in runs.items()}
        times = measure(runs, min(options.rounds, case.rounds))
        quantiles = {
            name: torch.tensor(t).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
            for name, t in times.items()
        }
        base = next(iter(quantiles))
        for name, (low, middle, high) in quantiles.items():
            # the median of ratios within a round: a busy moment hits both
            ratio = statistics.median(a / b for a, b in zip(times[base], times[name], strict=True))
            spread = f"({low:.2f} .. {high:.2f})"
            print(f"  {name:24} {middle:9.2f} ms  {spread:22} {ratio:6.2f}x  {memory[name]:8.1f} MB")
            numbers = [f"{x:.3f}" for x in (low, middle, high, memory[name])]
            where = [torch.get_num_threads(), processor(), simd, torch.__version__]
            if options.csv:
                today = datetime.date.today().isoformat()
                add_row(options.csv, [case.op, case.shape, name, *numbers, *where, today])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
