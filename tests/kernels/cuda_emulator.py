"""Compiles the CUDA kernels for a CPU (emulator/cuda_runtime.h) and puts them in the place of glomo_kernels._cuda."""

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest
from glomo_kernels import cuda_extension

HERE = Path(__file__).parent / "emulator"
SOURCES = Path(__file__).parents[2] / "kernels" / "csrc" / "cuda"
FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"),
    *("-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden"),
]


def _compile(target: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    probe = [*compiler, "-x", "c++", "-fsyntax-only", "-"]
    if subprocess.run(probe, input=b"_Float16 x;", capture_output=True, check=False).returncode:
        pytest.skip(f"{' '.join(compiler)} has no _Float16; gcc 12 has")
    include = [HERE, pybind11.get_include(), sysconfig.get_path("include")]
    sources = [*sorted(SOURCES.glob("*.cu")), SOURCES / "bindings.cpp"]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:

        def compile_one(source: Path) -> str:
            output = str(Path(folder, source.name + ".o"))
            flags = [*FLAGS, *(f"-I{path}" for path in include)]
            subprocess.run([*compiler, *flags, "-x", "c++", "-c", str(source), "-o", output], check=True)
            return output

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, sources))
        linked = Path(folder, "linked.so")
        subprocess.run([*compiler, "-shared", *objects, "-o", str(linked)], check=True)
        linked.replace(target)


@functools.cache
def module():
    """_cuda for CPU tensors; compiled once for each state of its sources."""
    files = [*sorted(SOURCES.iterdir()), *sorted(HERE.iterdir())]
    state = hashlib.sha256(
        b"".join(file.read_bytes() for file in files) + repr((FLAGS, sys.version)).encode()
    )
    folder = Path(tempfile.gettempdir(), f"glomo-emulator-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{state.hexdigest()[:16]}.so"
    if not target.exists():
        for old in folder.glob("*.so"):
            old.unlink()
        _compile(target)
    # Not the name of the real one: pybind11 would return that, if it has been loaded.
    loader = importlib.machinery.ExtensionFileLoader("emulated._cuda", str(target))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    loaded = importlib.util.module_from_spec(spec)
    loader.exec_module(loaded)
    return loaded


def use(monkeypatch) -> None:
    """For the length of a test, backend `cuda` takes CPU tensors and runs in the emulator."""
    monkeypatch.setattr(cuda_extension, "_load", module)
    monkeypatch.setattr(cuda_extension, "DEVICE", "cpu")
