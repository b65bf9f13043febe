"""Every kernel once or twice at small odd sizes, forward and backward: what compute-sanitizer runs."""

from __future__ import annotations

import sys
import traceback
from itertools import product

import torch
from glomo_kernels import affinity_graph, affinity_mix, decoder_loss, dispatch, graph_apply, graph_mix

from gpu.part import KERNELS_FAILED


def mix(device: str, dtypes: list[torch.dtype], width: int, value_width: int) -> None:
    """Three tiles of rows, the last one of 3. Widths as in the tests, whose compiled kernels are in the cache."""
    for dtype, (kind, options) in product(dtypes, (("relu", {}), ("square", {}), ("topk", {"topk": 3}))):
        q, k, v = (
            torch.randn(1, 1, 131, n, device=device, dtype=dtype, requires_grad=True)
            for n in (width, width, value_width)
        )
        theta = (
            torch.rand(1, 1, 131, device=device, dtype=dtype, requires_grad=True) if kind == "relu" else None
        )
        options = {**options, "kind": kind, "lengths": torch.tensor([127], device=device)}
        wanted = [x for x in (q, k, v, theta) if x is not None]
        torch.autograd.grad(affinity_mix(q, k, v, theta, **options).float().square().sum(), wanted)
        if dtype == torch.float32:
            affinity_mix(q.detach(), k.detach(), v.detach(), theta, **options, return_stats=True)


def graphs(device: str, dtypes: list[torch.dtype]) -> None:
    choices = ({}, {"keep": 5}, {"keep": 40}, {"keep": 5, "renormalise": False})
    for dtype, options in product(dtypes, choices):
        q, k = (torch.randn(1, 4, 131, 20, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
        graph = affinity_graph(q, k, torch.rand(1, 4, 131, device=device), **options)
        torch.autograd.grad(graph.weights.square().sum(), (q, k))
        for width in (3, 33, 64):
            x = torch.randn(1, 131, width, device=device, dtype=dtype, requires_grad=True)
            weights = torch.randn(1, 131, 6, device=device, dtype=dtype, requires_grad=True)
            mixed = graph_mix(graph.detach(), weights, x, heads=2)
            torch.autograd.grad(mixed.float().sum(), (weights, x))
            graph_apply(graph.detach(), x[:, None].expand(-1, 2, -1, -1))


def loss(device: str, dtypes: list[torch.dtype]) -> None:
    """Two blocks of words for a program, the second with a part of them missing."""
    for dtype in dtypes:
        hidden, weight = (
            torch.randn(n, 8, device=device, dtype=dtype, requires_grad=True) for n in (5, 10_001)
        )
        target = torch.tensor([0, 10_000, -100, 8191, 8192], device=device)
        torch.autograd.grad(decoder_loss(hidden, weight, target), (hidden, weight))
        decoder_loss(hidden.detach(), weight.detach(), target)


def main() -> None:
    dry = "--dry" in sys.argv
    device = "cpu" if dry else "cuda"
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # the first configuration, and fresh memory full of NaN
    half = [torch.bfloat16, torch.float16]
    mix(device, [torch.float32] if dry else [torch.float32, *half], 5, 3)
    if not dry:
        mix(device, half, 64, 64)  # by tensor descriptors, which rows of 10 bytes have not
    graphs(device, [torch.float32, torch.float64, *half[: 1 if dry else 2]])
    loss(device, [torch.float32, *half])
    if not dry:
        torch.cuda.synchronize()
    print(f"every kernel has run; {dispatch.VARIABLE} chose nothing, the table did")


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(KERNELS_FAILED)
