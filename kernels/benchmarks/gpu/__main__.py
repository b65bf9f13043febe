"""Prove and measure everything on a GPU: make gpu [PARTS="tests bench"] [BUDGET=570] [OUT=folder] [DRY=1]

    build     the CPU and CUDA extensions, in place, for this Python
    tests     every test marked gpu, in several processes               tests.csv
    sanitize  compute-sanitizer over a small run of every kernel, where it is there
    bench     the ceilings of this machine, then each op against its peers   bench.csv
    tune      (only when named) every configuration of a grid, per kernel    tune.csv
    profile   where the time of the kernels goes                        profile.csv
    pretrain  the paper's model on one GPU: bf16 against fp32, resume, speed   pretrain.csv
    transfer  graphs and task models there as on the processor
    train     (only when named) a predictor small enough to keep, as long as the time allows

Parts run one after the other, each in a process of its own with a share of the time; one that fails or is stopped
leaves what it has written and the others run. Where a case of bench, tune or profile fails, hangs or leaves the
device unusable, the cases behind it go on in another process. The short table at the end is also OUT/summary.txt, and
what the parts printed OUT/log.txt. Needs Python with torch, Triton, numpy and pytest; nvcc, gcc and pybind11 for
build; for pretrain and transfer the wheels that `make gpu-wheels` collects where a package index is (folder wheels/).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, NamedTuple

from gpu import report
from gpu.part import ROOT, SPOILED, Part, machine, step_file


class Share(NamedTuple):
    """How much of the time a part may take, and whether it runs without being named."""

    share: float
    default: bool = True


# In the order of running. The time that a part does not need goes to those after it.
PARTS = {
    "build": Share(0.10),
    "tests": Share(0.24),
    "sanitize": Share(0.09),
    "bench": Share(0.25),
    "tune": Share(0.30, default=False),
    "profile": Share(0.07),
    "pretrain": Share(0.25),
    "transfer": Share(0.06),
    "train": Share(0.80, default=False),
}
SECONDS = 570
DRY_SECONDS = 1500  # a CPU is slower, and nvcc on two cores takes minutes
GRACE_SECONDS = 5  # that a part may take beyond its time before it is stopped
STUCK_SECONDS = 60.0  # a step that takes longer hangs; compiling all that a case needs takes less
ENOUGH_SECONDS = 15.0  # for another process to begin
LOG_BYTES = 2 << 20  # of each part's output that are kept
NOTES = "notes"
RESULTS = ROOT / "kernels" / "benchmarks" / "results" / "gpu"


def environment(dry: bool) -> dict[str, str]:
    path = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "kernels" / "benchmarks")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    if dry:
        found |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "2"}
    return found


def process_of(name: str, options: argparse.Namespace, seconds: float, first: int, notes: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "gpu",
        "--part",
        name,
        "--seconds",
        f"{seconds:.0f}",
        "--first",
        str(first),
    ]
    return [*command, *(["--dry"] if options.dry else []), "--out", options.out, "--notes", str(notes)]


def run(name: str, options: argparse.Namespace, seconds: float, scratch: Path) -> tuple[str, float]:
    """One part: (what became of it, seconds). Its output goes to the screen and to the log.

    Where a step of it fails, crashes, hangs or spoils the device, another process goes on behind this step.
    """
    deadline, began = time.monotonic() + seconds, time.monotonic()
    print(f"\n==> {name}: at most {seconds:.0f} s", flush=True)
    output, lost, first = scratch / "output", list[str](), 0
    with output.open("wb") as file:
        while True:
            command = process_of(name, options, deadline - time.monotonic(), first, scratch / NOTES)
            outcome, last = watch(command, options.dry, file, deadline, step_file(scratch))
            if last is None or last < first or deadline - time.monotonic() < ENOUGH_SECONDS:
                break
            lost.append(f"step {last + 1} {outcome}")
            first = last + 1
    if lost:
        outcome = "FAILED: " + ", ".join(lost + ([outcome] if outcome != "ok" else []))
    took = time.monotonic() - began
    text = output.read_bytes()
    with (Path(options.out) / "log.txt").open("ab") as log:
        log.write(f"==> {name}: {outcome}, {took:.0f} s\n".encode() + text[-LOG_BYTES:] + b"\n")
    sys.stdout.write(text[-4000:].decode(errors="replace"))
    print(f"==> {name}: {outcome}, {took:.0f} s", flush=True)
    return outcome, took


def watch(
    command: list[str], dry: bool, output: IO[bytes], deadline: float, step: Path
) -> tuple[str, int | None]:
    """One process: what became of it, and the step that it was in, if those behind this one may still run."""
    if step.exists():
        step.touch()  # the time of the process before this one does not count
    process = subprocess.Popen(
        command,
        env=environment(dry),
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while (code := process.poll()) is None:
            if time.monotonic() > deadline + GRACE_SECONDS:
                return "STOPPED at its time", None
            if step.exists() and time.time() - step.stat().st_mtime > STUCK_SECONDS * (10 if dry else 1):
                return "hangs", int(step.read_text())
            time.sleep(0.05)
    finally:
        end(process)
    if code == 0:
        return "ok", None
    said = "spoiled the device" if code == SPOILED else f"FAILED, exit code {code}"
    return said, int(step.read_text()) if step.exists() else None


def stop(*_: object) -> None:
    """SIGTERM as an exception: a part has a session of its own, which is ended on the way out."""
    sys.exit(128 + signal.SIGTERM)


def end(process: subprocess.Popen[bytes]) -> None:
    """The part and everything that it started. One that hangs in the driver may never end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", help=f"of {', '.join(PARTS)}; default: those above without a remark"
    )
    parser.add_argument("--seconds", type=float, help=f"for all parts together; default {SECONDS}")
    parser.add_argument("--out", default=None)
    parser.add_argument("--dry", action="store_true", help="on a CPU, tiny, with Triton's interpreter")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part = Part(Path(options.out), options.notes, options.dry, options.seconds, options.first)
        importlib.import_module(f"gpu.{options.part}").main(part)
        return 0
    if wrong := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no part {wrong[0]!r}; there are {', '.join(PARTS)}")
    chosen = [n for n in PARTS if n in options.parts] or [n for n, share in PARTS.items() if share.default]
    where = ROOT / "build" / "gpu-dry" if options.dry else RESULTS
    options.out = str(Path(options.out or where).resolve())
    options.seconds = options.seconds or (DRY_SECONDS if options.dry else SECONDS)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    return run_all(chosen, options)


def run_all(chosen: list[str], options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.seconds
    signal.signal(signal.SIGTERM, stop)
    out = Path(options.out)
    (out / "log.txt").write_bytes(b"")
    lines = [", ".join(f"{name} {value}" for name, value in machine().items())]
    good = True
    for number, name in enumerate(chosen):
        left = deadline - time.monotonic()
        share = PARTS[name].share / sum(PARTS[other].share for other in chosen[number:])
        with tempfile.TemporaryDirectory(prefix="glomo-gpu-") as folder:
            scratch = Path(folder)
            outcome, took = run(name, options, max(10.0, share * left), scratch)
            notes = scratch / NOTES
            said = notes.read_text().splitlines() if notes.exists() else []
        good &= outcome == "ok"
        lines += [f"{name:9} {outcome}, {took:.0f} s", *(f"    {line}" for line in said)]
        (out / "summary.txt").write_text("\n".join(lines) + "\n")
    try:
        (report.write if out == RESULTS else report.draw)(out)
    except Exception:
        good = False
        traceback.print_exc()
    print("\n" + "\n".join(lines) + f"\nin {options.out}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
