"""Builds the compiled kernels, glomo_kernels._cpu and ._cuda; everything else is in pyproject.toml.

The extensions include no torch header, so one build serves every torch. _cpu is compiled without -march=native:
the inner loops come in versions for several instruction sets and are chosen at run time (kernels/csrc/simd.cpp).
It needs gcc or clang: the loops use their vector extensions. _cuda is built where nvcc is (kernels/build_cuda.py).
"""

import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
import build_cuda

SOURCES = [
    "bindings.cpp",
    "simd.cpp",
    "affinity_graph.cpp",
    "affinity_mix.cpp",
    "bfloat16.cpp",
    "bytes.cpp",
    "decoder_loss.cpp",
    "graph_mix.cpp",
    "graph_products.cpp",
    "graph_stripes.cpp",
]
HEADERS = sorted(
    path.name for path in Path(__file__).with_name("kernels").glob("csrc/*") if path.suffix in (".h", ".inl")
)

ParallelCompile().install()  # the sources of an extension on all cores

extensions = [
    Pybind11Extension(
        "glomo_kernels._cpu",
        sources=[f"kernels/csrc/{name}" for name in SOURCES],
        depends=[f"kernels/csrc/{name}" for name in HEADERS],
        cxx_std=17,
        extra_compile_args=["-O3", "-pthread", "-Wall", "-Wextra", "-Wno-psabi"],
        extra_link_args=["-pthread"],
    )
]
if build_cuda.wanted():
    files = [*build_cuda.KERNELS, *build_cuda.HEADERS, build_cuda.FOLDER / "bindings.cpp"]
    depends = [f"kernels/csrc/cuda/{file.name}" for file in files]
    # optional: an installation without it is a good one
    extensions.append(Extension("glomo_kernels._cuda", sources=[], depends=depends, optional=True))


class BuildKernels(build_ext):
    def build_extension(self, ext):
        if ext.name == "glomo_kernels._cuda":
            build_cuda.build_or_warn(Path(self.get_ext_fullpath(ext.name)))
        else:
            super().build_extension(ext)


setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels})
