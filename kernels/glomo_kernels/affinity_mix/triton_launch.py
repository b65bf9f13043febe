"""How a Triton kernel of affinity_mix is started: with its only configuration, or with the best of a few."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from glomo_kernels.affinity_mix.triton_configs import Config
from glomo_kernels.triton_device import guard, interpreted

# What the best configuration may depend on, beside the dtypes: names of arguments of the kernels.
KEY = ("bucket", "KIND", "THETA", "STATS", "DG", "DV")


def bucket(rows: int, columns: int) -> int:
    """Class of the length for autotuning, log2: up to 256, 512, .. 16,384, and more."""
    return min(max((max(rows, columns) - 1).bit_length(), 8), 15)


# Arguments that a kernel with TMA gets as descriptors, in tiles of BLOCK_N rows of a padded width.
DESCRIBED = {"k": "PADDED_DG", "v": "PADDED_DV"}


def _descriptor(name: str, arguments: dict[str, Any]) -> Any:
    """What the kernel gets as argument `name`, which is in DESCRIBED."""
    x = arguments[name]
    if not arguments["TMA"]:
        return x
    return TensorDescriptor(
        x, list(x.shape), list(x.stride()), [1, 1, arguments["BLOCK_N"], arguments[DESCRIBED[name]]]
    )


def describable(*tensors: Tensor) -> bool:
    """Whether the copy engine takes [B, H, T, width] tensors as they lie: all steps multiples of 16 bytes, none 0."""
    for x in tensors:
        *steps, unit = x.stride()
        batch, head, row = steps
        if unit != 1 or min(steps) < 1 or (batch | head | row) * x.itemsize % 16 != 0:
            return False
        if x.data_ptr() % 16 != 0 or x.numel() == 0:
            return False
    return True


@functools.cache
def _tuned(kernel: Any, candidates: tuple[Config, ...]) -> Any:
    configs = [
        triton.Config(c.meta(kernel.arg_names), num_warps=c.warps, num_stages=c.stages) for c in candidates
    ]
    key = [name for name in KEY if name in kernel.arg_names]
    # cache_results: a later process takes the same choice from Triton's cache folder, and so computes the same bits
    if "TMA" in kernel.arg_names:
        kernel = triton.heuristics({name: functools.partial(_descriptor, name) for name in DESCRIBED})(kernel)
    return triton.autotune(configs, key=key, cache_results=True)(kernel)


def launch(
    kernel: Any,
    programs: Callable[[Config], int],
    candidates: list[Config],
    device: torch.device,
    arguments: dict[str, Any],
) -> None:
    """Run `kernel` with one of `candidates`; programs(config) is the size of the grid.

    The choice by time may differ between machines and with it the last bits of the result, so deterministic mode
    takes the first.
    """
    given = {name: arguments[name] for name in kernel.arg_names if name in arguments}
    with guard(device):
        config = candidates[0]
        if len(candidates) > 1 and not interpreted() and not torch.are_deterministic_algorithms_enabled():
            config = _fastest(kernel, programs, tuple(candidates), device, given)
        given |= config.meta(kernel.arg_names)
        if given.get("TMA"):
            given |= {name: _descriptor(name, given) for name in DESCRIBED}
        kernel[(programs(config),)](**given, num_warps=config.warps, num_stages=config.stages)


# What tuning chose: asking Triton's tuner at each launch costs a quarter of the launch.
_CHOSEN: dict[tuple[Any, ...], Config] = {}
_TUNING = threading.Lock()  # a tuner keeps the arguments of a call, and what it chose, in itself


def _fastest(
    kernel: Any,
    programs: Callable[[Config], int],
    candidates: tuple[Config, ...],
    device: torch.device,
    given: dict[str, Any],
) -> Config:
    # What the tuner looks at, the values of KEY and the dtypes, and what is offered.
    dtypes = [x.dtype for x in given.values() if isinstance(x, Tensor)]
    case = (kernel, device, candidates, *(given.get(name) for name in KEY), *dtypes)
    if case not in _CHOSEN:
        with _TUNING:  # a thread that has waited for the same case takes it from the tuner's memory
            tuned = _tuned(kernel, candidates)
            tuned[lambda meta: (programs(Config(meta["BLOCK_M"], meta["BLOCK_N"], 0, 0)),)](**given)
            best = tuned.best_config
        blocks = best.kwargs["BLOCK_M"], best.kwargs["BLOCK_N"]
        _CHOSEN[case] = Config(*blocks, best.num_warps, best.num_stages, best.kwargs.get("TMA", False))
    return _CHOSEN[case]


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """Strides of [B, H, T] or [B, H, T, width] as kernel arguments <name>_b, <name>_h, <name>_t."""
    return {f"{name}_{axis}": tensor.stride(i) for i, axis in enumerate("bht")}


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor with neighbours in the last dimension side by side and rows less than 2^24 elements apart.

    Inside of a tile of up to 128 rows the kernels count in 32 bits.
    """
    side_by_side = tensor.stride(3) == 1 or tensor.shape[3] == 1
    return tensor if side_by_side and abs(tensor.stride(2)) < 1 << 24 else tensor.contiguous()
