"""The compiled CUDA part, glomo_kernels._cuda, loaded when a CUDA backend first asks for it.

Its launchers take addresses and a stream; memory is allocated here, by torch, and freed in the order of the stream.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from glomo_kernels.extensions import load

INTERFACE = 2  # in csrc/cuda/kernels.h
DEVICE = "cuda"  # the tests put "cpu" here, and an emulated _cuda in the place of the real one
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


@functools.cache
def _load() -> ModuleType | str:
    return load("_cuda", INTERFACE, "`python kernels/build_cuda.py`, which needs nvcc (docs/kernels.md)")


def loaded() -> ModuleType:
    """The extension; ImportError with the reason if it is not there."""
    extension = _load()
    if isinstance(extension, str):
        raise ImportError(extension)
    return extension


@functools.cache
def _problem(module: ModuleType, index: int | None) -> str | None:
    """What the driver says to the kernels on one device: no image for its architecture, a driver that is too old."""
    if index is None:
        return module.problem() or None
    with torch.cuda.device(index):
        try:
            module.set_device(index)
        except RuntimeError as error:
            return str(error)
        return module.problem() or None


def why_not(tensor: Tensor | None) -> str | None:
    """What every CUDA backend needs: tensors on a device, the extension, and code in it for that device."""
    if tensor is not None and tensor.device.type != DEVICE:
        return f"it takes {DEVICE.upper()} tensors, these are on {tensor.device}"
    extension = _load()
    if isinstance(extension, str):
        return extension
    if tensor is not None and tensor.dtype not in TYPES:
        return f"{tensor.dtype} is not implemented in CUDA"
    index = None
    if DEVICE == "cuda":
        if not torch.cuda.is_available():
            return "torch sees no CUDA device here"
        index = torch.cuda.current_device() if tensor is None else tensor.get_device()
    problem = _problem(extension, index)
    return None if problem is None else f"the kernels do not run on this device: {problem}"


@contextmanager
def guard(tensor: Tensor) -> Iterator[None]:
    """Makes the tensor's device the current one, for torch and for the launchers, whose CUDA runtime is another."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            loaded().set_device(tensor.get_device())
            yield
    else:
        yield


def stream(tensor: Tensor) -> int:
    """The stream that torch works on, for launches."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def address(tensor: Tensor | None) -> int:
    """For a launcher; 0 is none."""
    return 0 if tensor is None else tensor.data_ptr()


def transposed(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The order that sorts the edges by `keys` (0 .. size), and where each key's edges begin: int64 [E], [size + 1].

    Edges of one key stay in their order, so that sums over them are the same on every run.
    """
    small = keys.to(torch.int32) if size < 2**31 else keys
    ordered, order = small.sort(stable=True)
    bounds = torch.arange(size + 1, device=keys.device, dtype=ordered.dtype)
    return torch.searchsorted(ordered, bounds), order
