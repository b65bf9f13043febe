"""The compiled CPU part, glomo_kernels._cpu, loaded when a C++ backend first asks for it."""

from __future__ import annotations

import functools
import os
from types import ModuleType

import torch
from torch import Tensor

from glomo_kernels.extensions import load

INTERFACE = 7  # in csrc/kernels.h

# Values of GLOMO_SIMD: the most that the loops may use of what the machine has.
INSTRUCTION_SETS = ("portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx")


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
    """The extension; ImportError with the reason if it is not there."""
    extension = _load()
    if isinstance(extension, str):
        raise ImportError(extension)
    return extension


def why_not(tensor: Tensor | None) -> str | None:
    """What every C++ backend needs: the extension, and tensors on the CPU."""
    if tensor is not None and tensor.device.type != "cpu":
        return f"it takes CPU tensors, these are on {tensor.device}"
    return missing()


def why_not_keys(k: Tensor | None) -> str | None:
    """None unless there are more keys than the loops tell apart, which hold spans in float32."""
    if k is None or k.shape[2] < 2**24:
        return None
    return f"it counts keys in float32, exact below 2^24; T is {k.shape[2]}"


# The processor's products of bfloat16 take rows whose width is a multiple of this.
HALF_WIDTH = 32


def has_bfloat16(tensor: Tensor) -> bool:
    """Whether products of such a tensor can be the processor's own for bfloat16 (kernels/csrc/bfloat16.h)."""
    return tensor.dtype == torch.bfloat16 and bool(loaded().bfloat16())


def in_words(tensor: Tensor) -> bool:
    """Whether its rows can be read by words of 32 bits. Views of one large buffer may lie anywhere."""
    if tensor.element_size() % 4 == 0:
        return True
    places = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return tensor.data_ptr() % 4 == 0 and all(size < 2 or stride % 2 == 0 for size, stride in places)


def threads() -> int:
    """That the loops may use: as many as torch does."""
    return torch.get_num_threads()
