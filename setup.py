"""Builds glomo_kernels._cpu, the compiled CPU kernels; everything else is in pyproject.toml.

The extension includes no torch header, so one build serves every torch. It is compiled without -march=native:
the inner loops come in versions for several instruction sets and are chosen at run time (kernels/csrc/simd.cpp).
Needs gcc or clang: the loops use their vector extensions.
"""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

SOURCES = ["bindings.cpp", "simd.cpp", "affinity_graph.cpp", "affinity_mix.cpp", "graph_mix.cpp", "graph_stripes.cpp"]
HEADERS = [
    "affinity_mix.h", "graph_stripes.h", "kernels.h", "largest.h", "scratch.h", "simd.h", "threads.h",
    "simd.inl", "gemm.inl", "tile.inl",
]  # fmt: skip

setup(
    ext_modules=[
        Pybind11Extension(
            "glomo_kernels._cpu",
            sources=[f"kernels/csrc/{name}" for name in SOURCES],
            depends=[f"kernels/csrc/{name}" for name in HEADERS],
            cxx_std=17,
            extra_compile_args=["-O3", "-pthread", "-Wall", "-Wextra", "-Wno-psabi"],
            extra_link_args=["-pthread"],
        )
    ]
)
