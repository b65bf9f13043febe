"""The compiled CPU part, glomo_kernels._cpu, loaded when a C++ backend first asks for it."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

# enum Kind in csrc/kernels.h and csrc/cuda/kernels.h
KINDS = {"relu": 0, "square": 1, "topk": 2}
# INTERFACE in csrc/kernels.h. Raise both when what Python hands to C++, or expects from it, changes: an extension
# of older sources would compute something else without an error.
INTERFACE = 2


# Values of GLOMO_SIMD: the most that the loops may use of what the machine has.
INSTRUCTION_SETS = ("portable", "avx2", "avx512")


@functools.cache
def _load() -> ModuleType | str:
    if (most := os.environ.get("GLOMO_SIMD")) and most not in INSTRUCTION_SETS:
        raise ValueError(f"GLOMO_SIMD must be one of {', '.join(INSTRUCTION_SETS)}, got {most!r}.")
    try:
        extension = importlib.import_module("glomo_kernels._cpu")
    except ImportError as error:
        return (
            f"the extension glomo_kernels._cpu cannot be loaded ({error}); build it with `make setup` or "
            "`pip install .`"
        )
    found = getattr(extension, "interface", 0)
    if found != INTERFACE:
        return (
            f"the extension glomo_kernels._cpu was built from other sources (interface {found}, these are "
            f"{INTERFACE}); build it again with `make setup` or `pip install .`"
        )
    return extension


def missing() -> str | None:
    """None if the extension is there, else why not."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def cpu() -> ModuleType:
    loaded = _load()
    if isinstance(loaded, str):
        raise ImportError(loaded)
    return loaded


def why_not(tensor: Tensor | None) -> str | None:
    """What every C++ backend needs: the extension, and tensors on the CPU."""
    if tensor is not None and tensor.device.type != "cpu":
        return f"it takes CPU tensors, these are on {tensor.device}"
    return missing()


def why_not_kind(kind: str, language: str) -> str | None:
    """None if there is compiled code for this kind of weights, else why not."""
    return (
        None if kind in KINDS else f"kind {kind!r} is not implemented in {language} ({', '.join(KINDS)} are)"
    )


def threads() -> int:
    return torch.get_num_threads()


def contiguous(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor in row-major order and in `dtype`; itself if it is so already."""
    return tensor.to(dtype or tensor.dtype).contiguous()
