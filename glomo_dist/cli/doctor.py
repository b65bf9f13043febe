"""Say what this machine has, what is missing, and for what it would be needed.

Example:
  glomo doctor

Exit code 0 if the whole road can be run here, 2 if something that it needs is missing.
"""

from __future__ import annotations

import contextlib
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
from typing import Any

from glomo_dist.runtime import kernels
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.fingerprint import code_version
from glomo_dist.runtime.processes import usable_cores
from glomo_dist.runtime.words import counted

GIB = 1 << 30
MARKS = {True: "ok", False: "--"}

# name, the module that is imported ("": none, it would take seconds), for what. All are needed.
PACKAGES = (
    ("torch", "torch", "everything"),
    ("numpy", "numpy", "everything"),
    ("tyro", "tyro", "the command line"),
    ("tqdm", "tqdm", "progress"),
    ("safetensors", "safetensors", "pretrain, export, evaluate"),
    ("deepspeed", "", "pretrain"),
    ("ninja", "", "deepspeed"),
    ("packaging", "packaging", "deepspeed"),
    ("psutil", "psutil", "pretrain on several machines"),
    ("tensorboard", "", "the curves of a run while it is going on"),
    ("webdataset", "webdataset", "prepare, pretrain"),
    ("pillow", "PIL", "prepare images"),
    ("zstandard", "zstandard", "input of .zst files"),
    ("pyarrow", "pyarrow", "Parquet input"),
    ("fsspec", "fsspec", "input by address"),
    ("aiohttp", "", "input from http://, https://"),
    ("s3fs", "", "input from s3://"),
    ("scikit-learn", "sklearn", "the digits of the demo"),
    ("ray", "", "evaluate in parallel (without it: --executor process)"),
    ("pyyaml", "yaml", "evaluation plans in a file"),
    ("threadpoolctl", "threadpoolctl", "evaluate"),
    ("scipy", "scipy", "report"),
    ("matplotlib", "matplotlib", "report"),
    ("jinja2", "jinja2", "report"),
)


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
    if not isinstance(_imported("tyro"), Exception):
        from glomo_dist.cli.arguments import parse

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
            f"needed and missing: {', '.join(missing)}; what is marked -- above says why. `make setup` installs all "
            "Python packages."
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
    torch = _imported("torch")
    threads = (
        "" if isinstance(torch, Exception) else f", torch uses {counted(torch.get_num_threads(), 'thread')}"
    )
    yield Finding("cores", True, f"{usable_cores()} usable by this process{threads}")
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
    for name, module, what in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as e:
            yield Finding(name, False, f"needed for {what}: {e}", needed=True)
            continue
        failed = _imported(module) if module else None
        if isinstance(failed, Exception):
            yield Finding(
                name,
                False,
                f"{version}, needed for {what}, cannot be imported: {_reason(failed)}",
                needed=True,
            )
        else:
            yield Finding(name, True, f"{version}, for {what}", needed=True)


def _compilers() -> Iterator[Finding]:
    compiler = os.environ.get("CXX", "").split() or ["g++"]  # it may be called by another: CXX="ccache g++"
    for name, command, line, what in (("C++ compiler", compiler, 0, "CPU"), ("nvcc", ["nvcc"], -1, "CUDA")):
        here, said = _version(command)
        yield Finding(name, here, said[line] if here else f"{said[line]}; needed to build the {what} kernels")
    torch = _imported("torch")
    if not isinstance(torch, Exception):
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
    dispatch = _imported("glomo_kernels.dispatch")
    if isinstance(dispatch, Exception):
        yield Finding("glomo_kernels", False, f"cannot be imported: {_reason(dispatch)}", needed=True)
        return
    for op in dispatch.TABLE:
        try:
            states = dispatch.backends(op)
        except ValueError as e:
            yield Finding(op, False, str(e), needed=True)
            continue
        what = "; ".join(f"{name}: {why or 'usable'}" for name, why in states.items())
        refused = kernels.why_not_forced(op)
        here = refused is None and any(why is None for why in states.values())
        yield Finding(op, here, refused or what, needed=True)
    extension = _imported("glomo_kernels.cpu_extension")
    with contextlib.suppress(ImportError, ValueError):  # said above
        loaded = extension.loaded()
        found = loaded.instruction_set() + (f", {half} for bfloat16" if (half := loaded.bfloat16()) else "")
        found += f", {look} to look for edges first" if (look := loaded.look()) else ""
        yield Finding("C++ loops", True, f"{found} (GLOMO_SIMD chooses less)")


def _imported(module: str) -> Any:
    """The module, or the exception that its import ended with."""
    try:
        return importlib.import_module(module)
    except Exception as e:  # a package that does not fit its neighbours may raise anything
        return e


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def _memory(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """(total, available) bytes, None where the system does not say; a container's limit counts."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    values = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}
    total, free = values.get("MemTotal"), values.get("MemAvailable")
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # what has been read from files and is dropped when memory is wanted
        used -= int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):  # no limit ("max"), or no cgroup v2
        return total, free
    if total and free:
        total, free = min(total, limit), max(0, min(free, limit - used))
    return total, free


def _of(free: int | None, total: int | None) -> str:
    if free is None or total is None:
        return "unknown on this system"
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"


def _version(command: list[str]) -> tuple[bool, list[str]]:
    """Whether the program runs, and what it says of its version, or why it does not run."""
    program = shutil.which(command[0])
    if program is None:
        return False, [f"{command[0]} is not on the PATH"]
    call = [program, *command[1:], "--version"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return False, [str(e)]
    if done.returncode:
        return False, [f"`{' '.join(call)}` ended with exit code {done.returncode}"]
    return True, done.stdout.strip().splitlines() or [f"{program} does not answer to --version"]
