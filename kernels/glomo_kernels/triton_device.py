"""Whether Triton's kernels can run here. Triton itself is imported when one is first started."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

# The interpreter multiplies the bits of a bfloat16 as if they were an integer's.
WRONG_IF_INTERPRETED: tuple[torch.dtype, ...] = (torch.bfloat16,)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def capability(index: int) -> tuple[tuple[int, int], int]:
    """(compute capability, bytes of shared memory that one program may take) of a device"""
    properties: Any = torch.cuda.get_device_properties(index)
    return (properties.major, properties.minor), properties.shared_memory_per_block_optin


def why_not(tensor: Tensor | None = None) -> str | None:
    """What is missing to run a kernel on `tensor`, or at all."""
    if not installed():
        return "triton is not installed"
    if interpreted():
        return None
    if tensor is not None and tensor.device.type != "cuda":
        return f"it takes CUDA tensors, these are on {tensor.device}"
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "there is no CUDA device"
    index = None if tensor is None else tensor.device.index
    found, _ = capability(torch.cuda.current_device() if index is None else index)
    if found < (8, 0):
        return f"it needs compute capability 8.0, the device has {found[0]}.{found[1]}"
    return None


def guard(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A GPU as the current one, where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
