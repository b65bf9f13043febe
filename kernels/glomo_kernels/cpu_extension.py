"""The compiled CPU part, glomo_kernels._cpu, loaded when a C++ backend first asks for it."""

from __future__ import annotations

import functools
import os
from types import ModuleType

import torch
from torch import Tensor

from glomo_kernels.extensions import load

INTERFACE = 2  # in csrc/kernels.h

# Values of GLOMO_SIMD: the most that the loops may use of what the machine has.
INSTRUCTION_SETS = ("portable", "avx2", "avx512")


@functools.cache
def _load() -> ModuleType | str:
    if (most := os.environ.get("GLOMO_SIMD")) and most not in INSTRUCTION_SETS:
        raise ValueError(f"GLOMO_SIMD must be one of {', '.join(INSTRUCTION_SETS)}, got {most!r}.")
    return load("_cpu", INTERFACE, "`make setup` or `pip install .`")


def missing() -> str | None:
    """None if the extension is there, else why not."""
    extension = _load()
    return extension if isinstance(extension, str) else None


def loaded() -> ModuleType:
    extension = _load()
    if isinstance(extension, str):
        raise ImportError(extension)
    return extension


def why_not(tensor: Tensor | None) -> str | None:
    """What every C++ backend needs: the extension, and tensors on the CPU."""
    if tensor is not None and tensor.device.type != "cpu":
        return f"it takes CPU tensors, these are on {tensor.device}"
    return missing()


def threads() -> int:
    return torch.get_num_threads()
