"""Say what this machine has, what is missing, and for what it would be needed.

Example:
  glomo doctor

Exit code 0 if the whole road can be run here, 2 if something that it needs is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from glomo_kernels import dispatch

from glomo_dist.cli.arguments import parse
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.fingerprint import code_version

GIB = 1 << 30
MARKS = {True: "ok", False: "--"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked for, what was found, and if it is missing, what that prevents.

    needed: whether the road (prepare to report, on CPU) cannot be run without it.
    """

    name: str
    here: bool
    what: str
    needed: bool = False


@dataclass(frozen=True)
class Doctor:
    """No settings."""


def main(argv: Sequence[str]) -> None:
    parse(Doctor, argv, name="doctor", description=__doc__)
    missing = []
    print(f"glomo {code_version()}")
    for title, findings in examine():
        print(f"\n{title}")
        for finding in findings:
            print(f"  {MARKS[finding.here]}  {finding.name:<14} {finding.what}")
            if finding.needed and not finding.here:
                missing.append(finding.name)
    if missing:
        raise GlomoError(
            f"needed and missing: {', '.join(missing)}. `make setup` installs all Python packages."
        )


def examine() -> list[tuple[str, list[Finding]]]:
    """Everything that is looked at, by topic."""
    return [
        ("Machine", list(_machine())),
        ("Packages", list(_packages())),
        ("Compilers and GPU", list(_compilers())),
        ("Kernels (first usable one is taken; GLOMO_KERNELS forces one)", list(_kernels())),
    ]


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 10), f"{version} at {sys.executable}", needed=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(
        "cores", True, f"{cores} usable by this process, torch uses {torch.get_num_threads()} threads"
    )
    total, free = _memory()
    enough = free is None or free >= 2 * GIB
    yield Finding("memory", enough, _of(free, total) + ("" if enough else ": the demo needs about 2 GiB"))
    for name, path, least, what in (
        ("disk", Path.cwd(), 2 * GIB, "shards, checkpoints and graphs"),
        ("/dev/shm", Path("/dev/shm"), GIB // 4, "Ray's object store; it falls back to /tmp, slower"),
    ):
        if not path.exists():
            yield Finding(name, False, f"does not exist; used for {what}")
            continue
        usage = shutil.disk_usage(path)
        yield Finding(name, usage.free >= least, f"{_of(usage.free, usage.total)} ({what})")


def _packages() -> Iterator[Finding]:
    for name, module, what in (
        ("torch", "torch", "everything"),
        ("deepspeed", "", "pretrain"),  # not imported: it starts looking for compilers and takes seconds
        ("webdataset", "webdataset", "prepare, pretrain"),
        ("ray", "", "evaluate in parallel (without it: --executor process)"),
        ("pyarrow", "pyarrow", "Parquet input"),
        ("fsspec", "fsspec", "input by address"),
        ("s3fs", "", "input from s3://"),
        ("matplotlib", "", "report"),
        ("tensorboard", "", "the curves of a run while it is going on"),
    ):
        try:
            version = importlib.metadata.version(name)
            if module:
                importlib.import_module(module)
            yield Finding(name, True, f"{version}, for {what}", needed=True)
        except ImportError as e:  # PackageNotFoundError is one
            yield Finding(name, False, f"needed for {what}: {e}", needed=True)


def _compilers() -> Iterator[Finding]:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    yield Finding(
        "C++ compiler", compiler is not None, _first_line(compiler) or "needed to build the CPU kernels"
    )
    nvcc = shutil.which("nvcc")
    yield Finding("nvcc", nvcc is not None, _last_line(nvcc) or "needed to build the CUDA kernels")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus))
    cuda = torch.version.cuda
    built = f"this torch is built for CUDA {cuda}" if cuda else "this torch is a CPU build"
    yield Finding("GPU", gpus > 0, found or f"none usable ({built}); all stages run on CPU")
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    yield Finding(
        "triton", bool(triton), triton or "comes with CUDA builds of torch; needed for the Triton kernels"
    )


def _kernels() -> Iterator[Finding]:
    for op in dispatch.TABLE:
        states = dispatch.backends(op)
        what = "; ".join(f"{name}: {why or 'usable'}" for name, why in states.items())
        yield Finding(op, any(why is None for why in states.values()), what, needed=True)


def _memory() -> tuple[int | None, int | None]:
    """(total, available) bytes, None where the system does not say; a container's limit counts."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    values = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}
    total, free = values.get("MemTotal"), values.get("MemAvailable")
    limit = Path("/sys/fs/cgroup/memory.max")
    if total and free and limit.exists() and (text := limit.read_text().strip()).isdigit():
        total, free = min(total, int(text)), min(free, int(text))
    return total, free


def _of(free: int | None, total: int | None) -> str:
    if free is None or total is None:
        return "unknown on this system"
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"


def _first_line(program: str | None) -> str:
    return _version(program)[0]


def _last_line(program: str | None) -> str:
    return _version(program)[-1]


def _version(program: str | None) -> list[str]:
    if program is None:
        return [""]
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines() or [f"{program} does not answer to --version"]
