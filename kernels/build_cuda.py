"""Compiles kernels/csrc/cuda with nvcc: for setup.py, for the tests, and for the table of what the kernels take.

    python kernels/build_cuda.py            builds glomo_kernels._cuda in its place, and shows what goes wrong
    python kernels/build_cuda.py --check    says whether it is missing although nvcc is there

GLOMO_CUDA=0       leave the CUDA part out
GLOMO_CUDA_ARCH    architectures, e.g. "80;90"; the last one also as PTX, which later GPUs compile when they load
                   it. Default: that of the GPUs here, else 80;90;100 as far as nvcc knows them.
CUDA_HOME          where nvcc is, if not on the PATH
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent / "csrc" / "cuda"
KERNELS = sorted(FOLDER.glob("*.cu"))
HEADERS = sorted(FOLDER.glob("*.h"))
DEFAULT_ARCHITECTURES = ("80", "90", "100")
LEAST_ARCHITECTURE = 80  # bfloat16 on tensor cores, asynchronous copies
# -fmad=false: a*b + c is one instruction where fma() is written and nowhere else, see device.h
FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


class BuildError(Exception):
    """A command failed; the message has its output."""


def nvcc() -> str | None:
    """Where the compiler is, if it is here."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (found := shutil.which("nvcc", path=os.path.join(home, "bin"))):
            return found
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _required_nvcc() -> str:
    if (compiler := nvcc()) is None:
        raise BuildError("nvcc was not found on the PATH, in CUDA_HOME or in /usr/local/cuda")
    return compiler


def wanted() -> bool:
    """Whether the CUDA part can be built, and was not turned off."""
    return os.environ.get("GLOMO_CUDA", "1") != "0" and nvcc() is not None


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def architectures(compiler: str) -> list[str]:
    """Those of GLOMO_CUDA_ARCH, else of the GPUs here, else the default ones as far as the compiler knows them."""
    named = re.findall(r"\w+", os.environ.get("GLOMO_CUDA_ARCH", ""))
    for name in named:
        number = re.fullmatch(r"(\d+)[af]?", name)
        if number is None or int(number[1]) < LEAST_ARCHITECTURE:
            raise BuildError(
                f"GLOMO_CUDA_ARCH: {name!r} is none of this project's architectures; it takes numbers from "
                f'{LEAST_ARCHITECTURE} on, such as "80;90"'
            )
    if chosen := named or _of_the_gpus_here():
        return chosen
    known = re.findall(r"compute_(\d+)", _output(compiler, "--list-gpu-arch"))
    return [name for name in DEFAULT_ARCHITECTURES if name in known]


def _of_the_gpus_here() -> list[str]:
    """Older ones than LEAST_ARCHITECTURE are left out; an error if there are no others."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        said = _output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except BuildError:  # the program is there and the driver is not
        return []
    found = sorted({int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d+)", said, re.M)})
    usable = [str(number) for number in found if number >= LEAST_ARCHITECTURE]
    if found and not usable:
        raise BuildError(
            f"the GPUs here have architecture {', '.join(map(str, found))}, the kernels need {LEAST_ARCHITECTURE}; "
            f"GLOMO_CUDA_ARCH={LEAST_ARCHITECTURE} builds them for other machines"
        )
    return usable


def _code(name: str) -> str:
    return f"-gencode=arch=compute_{name},code=sm_{name}"


def _codes(names: list[str]) -> list[str]:
    return [*map(_code, names), f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}"]


def build(target: Path) -> None:
    """The extension module, for all architectures asked for."""
    import pybind11

    compiler = _required_nvcc()
    codes = _codes(architectures(compiler))
    include = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    jobs = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def compile_one(source: Path) -> str:
            target = str(Path(folder, source.name + ".o"))
            device = codes if source.suffix == ".cu" else []
            _output(compiler, *FLAGS, *device, *include, "-c", str(source), "-o", target)
            return target

        objects = list(pool.map(compile_one, [*KERNELS, FOLDER / "bindings.cpp"]))
        target.parent.mkdir(parents=True, exist_ok=True)
        _output(compiler, "-shared", "-cudart=static", *codes, *objects, "-o", str(target))


def build_or_warn(target: Path) -> None:
    """For setup.py: the CPU part is of use without this one, unless GLOMO_CUDA_ARCH asks for it."""
    try:
        build(target)
    except (BuildError, OSError) as error:
        if os.environ.get("GLOMO_CUDA_ARCH"):  # asked for: pip would not show a warning
            raise
        line = "!" * 100
        print(
            f"{line}\nThe CUDA kernels were NOT built; the CPU part is. GLOMO_CUDA=0 leaves them out in silence.\n"
            f"{error}\n{line}",
            file=sys.stderr,
            flush=True,
        )


def resources(names: Iterable[str]) -> list[dict[str, str | int]]:
    """What each kernel takes on each architecture, from the assembler's report.

    The shared memory whose size is given at launch is not in it: static_assert in the sources holds it to a limit.
    """
    compiler = _required_nvcc()

    def report(job: tuple[str, Path]) -> list[dict[str, str | int]]:
        name, source = job
        with tempfile.TemporaryDirectory() as folder:
            target = str(Path(folder, "kernel.cubin"))
            text = _output(
                compiler, *FLAGS, _code(name), "-Xptxas", "-v", "-cubin", str(source), "-o", target
            )
        parts = text.split("Compiling entry function '")[1:]
        return [{"arch": f"sm_{name}", "file": source.name, **_kernel(part)} for part in parts]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        reports = pool.map(report, [(name, source) for name in names for source in KERNELS])
        return [row for rows in reports for row in rows]


REPORTED = {
    "registers": r"Used (\d+) registers",
    "stack_bytes": r"(\d+) bytes stack frame",
    "spill_store_bytes": r"(\d+) bytes spill stores",
    "spill_load_bytes": r"(\d+) bytes spill loads",
    "static_shared_bytes": r"(\d+) bytes smem",
}


def _kernel(report: str) -> dict[str, str | int]:
    """One kernel of the report, which begins with its mangled name; all are templates over the element type."""
    found = re.match(r"\w*?\d([a-z_]+_kernel)I(13__nv_bfloat16|6__half|f|d)(?:Li(\d+)E)?E", report)
    if found is None:
        raise BuildError(f"no kernel's name: {report[:200]}")
    types = {"13__nv_bfloat16": "bfloat16", "6__half": "float16", "f": "float32", "d": "float64"}
    row: dict[str, str | int] = {
        "kernel": found[1],
        "type": types[found[2]],
        "load_bytes": found[3] or "",
    }
    for name, pattern in REPORTED.items():
        number = re.search(pattern, report)
        row[name] = int(number[1]) if number else 0
    return row


def main() -> None:
    folder = Path(__file__).parent / "glomo_kernels"
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if sys.argv[1:] == ["--check"]:
        if wanted() and not target.exists():
            print(
                "!!! nvcc is here, but the CUDA kernels were NOT built: `python kernels/build_cuda.py` shows why"
            )
        return
    if sys.argv[1:]:
        sys.exit(__doc__)
    try:
        build(target)
    except BuildError as error:
        sys.exit(str(error))
    print(target)


if __name__ == "__main__":
    main()
