"""How a Triton kernel of affinity_mix is started: with its only configuration, or with the best of a few."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from glomo_kernels.affinity_mix.triton_configs import Config, interpreted

# What the best configuration may depend on, beside the dtypes: names of arguments of the kernels.
KEY = ("bucket", "KIND", "THETA", "STATS", "DG", "DV")


def bucket(rows: int, columns: int) -> int:
    """Class of the length for autotuning, log2: up to 256, 512, .. 16,384, and more."""
    return min(max((max(rows, columns) - 1).bit_length(), 8), 15)


@functools.cache
def _tuned(kernel: Any, candidates: tuple[Config, ...]) -> Any:
    configs = [
        triton.Config({"BLOCK_M": c.block_m, "BLOCK_N": c.block_n}, num_warps=c.warps, num_stages=c.stages)
        for c in candidates
    ]
    key = [name for name in KEY if name in kernel.arg_names]
    # cache_results: a later process takes the same choice from Triton's cache folder, and so computes the same bits
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
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if len(candidates) == 1 or interpreted() or torch.are_deterministic_algorithms_enabled():
            config = candidates[0]
            blocks = config.blocks(kernel.arg_names)
            kernel[(programs(config),)](**given, **blocks, num_warps=config.warps, num_stages=config.stages)
            return
        case = (kernel, device, *candidates, *_case(given))
        if best := _CHOSEN.get(case):
            config = Config(best.kwargs["BLOCK_M"], best.kwargs["BLOCK_N"], best.num_warps, best.num_stages)
            kernel[(programs(config),)](**given, **best.all_kwargs())
            return
        tuned = _tuned(kernel, tuple(candidates))
        tuned[lambda meta: (programs(Config(meta["BLOCK_M"], meta["BLOCK_N"], 0, 0)),)](**given)
        _CHOSEN[case] = tuned.best_config


# What tuning chose: asking Triton's tuner at each launch costs a quarter of the launch.
_CHOSEN: dict[tuple[Any, ...], Any] = {}


def _case(given: dict[str, Any]) -> list[Any]:
    """What the tuner looks at: the values of KEY and the dtypes."""
    return [given.get(name) for name in KEY] + [x.dtype for x in given.values() if isinstance(x, Tensor)]


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """Strides of [B, H, T] or [B, H, T, width] as kernel arguments <name>_b, <name>_h, <name>_t."""
    return {f"{name}_{axis}": tensor.stride(i) for i, axis in enumerate("bht")}


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor with neighbours in the last dimension side by side and rows less than 2^24 elements apart.

    Inside of a tile of up to 128 rows the kernels count in 32 bits.
    """
    side_by_side = tensor.stride(3) == 1 or tensor.shape[3] == 1
    return tensor if side_by_side and abs(tensor.stride(2)) < 1 << 24 else tensor.contiguous()
