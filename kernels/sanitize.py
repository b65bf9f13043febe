"""Runs the tests of the C++ kernels under gcc's sanitizers: python kernels/sanitize.py [address] [thread]

address  AddressSanitizer and UndefinedBehaviorSanitizer, over all tests of the ops that have a C++ backend
thread   ThreadSanitizer, over the tests that run on several threads, with the kernels' own threads: torch's OpenMP
         run time is not instrumented, and its barriers would look like races

A copy of glomo_kernels with an instrumented extension goes to build/sanitize-<name>; the installed one stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread", "-DGLOMO_PLAIN_THREADS"],
}
LIBRARY = {"address": "libasan.so", "thread": "libtsan.so"}
TESTS = {"address": "cpp or number_of_threads or few_edges", "thread": "number_of_threads"}
OPTIONS = {
    # Python frees little at its end; torch and numpy have leaks of their own.
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1",
}


def build(name: str) -> Path:
    folder = ROOT / "build" / f"sanitize-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "kernels" / "glomo_kernels", folder / "glomo_kernels", ignore=ignored)
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    command = [
        os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-g", "-fno-omit-frame-pointer", "-fPIC", "-shared",
        "-pthread", "-fvisibility=hidden", "-Wno-psabi", *FLAGS[name], *(f"-I{path}" for path in includes),
        *map(str, sorted((ROOT / "kernels" / "csrc").glob("*.cpp"))),
        "-o", str(folder / "glomo_kernels" / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return folder


def library(name: str) -> str:
    """Path of a library of the compiler's."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run(name: str) -> int:
    print(f"==> {name}: building", flush=True)
    folder = build(name)
    # libstdc++ as well: the sanitizer must find the function that throws when the program starts
    preload = " ".join(library(name) for name in (LIBRARY[name], "libstdc++.so.6"))
    environment = {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": preload,
        "PYTHONPATH": str(folder),
        "PYTHONMALLOC": "malloc",
    }
    print(f"==> {name}: testing", flush=True)
    program = (
        "import sys, glomo_kernels, pytest;"
        f"assert glomo_kernels.__file__.startswith({str(folder)!r}), glomo_kernels.__file__;"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    tests = [
        "tests/kernels",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        f"({TESTS[name]}) and not compiles_as_one_graph",
    ]
    return subprocess.run(
        [sys.executable, "-c", program, *tests], cwd=ROOT, env=environment, check=False
    ).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chosen", nargs="*", metavar="|".join(FLAGS), default=list(FLAGS))
    chosen = parser.parse_args().chosen
    if unknown := set(chosen) - set(FLAGS):
        parser.error(f"{unknown.pop()!r} is none of {', '.join(FLAGS)}")
    codes = {name: run(name) for name in chosen}
    print(
        ", ".join(f"{name}: {'clean' if code == 0 else f'failed ({code})'}" for name, code in codes.items())
    )
    sys.exit(any(codes.values()))
