"""What the two compiled extensions have in common: _cpu (cpu_extension.py) and _cuda (cuda_extension.py)."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

# enum Kind in csrc/kernels.h and csrc/cuda/kernels.h
KINDS = {"relu": 0, "square": 1, "topk": 2}


def load(name: str, interface: int, how: str) -> ModuleType | str:
    """The extension glomo_kernels.<name>, or why it cannot be used.

    interface: INTERFACE of its sources. Raise it there and here when what Python hands over, or expects back,
        changes: an extension of older sources would compute something else without an error.
    how: to build it.
    """
    try:
        extension = importlib.import_module(f"glomo_kernels.{name}")
    except ImportError as error:
        return f"the extension glomo_kernels.{name} cannot be loaded ({error}); build it with {how}"
    found = getattr(extension, "interface", 0)
    if found != interface:
        return (
            f"the extension glomo_kernels.{name} was built from other sources (interface {found}, these are "
            f"{interface}); build it again with {how}"
        )
    return extension


def why_not_kind(kind: str, language: str) -> str | None:
    """None if there is compiled code for this kind of weights, else why not."""
    return (
        None if kind in KINDS else f"kind {kind!r} is not implemented in {language} ({', '.join(KINDS)} are)"
    )


def contiguous(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor in row-major order and in `dtype`; itself if it is so already."""
    return tensor.to(dtype or tensor.dtype).contiguous()
