"""What dividing by the sum of the rounded weights is worth in half precision; the table in docs/numerics.md.

python kernels/benchmarks/rounded_sums.py     some seconds, on the CPU

The roundings of affinity_mix in Triton, imitated in PyTorch: weights are rounded before the products with the values,
D_i comes from the rounded output, or from the exact weights in a block whose slopes are steep. Printed are the worst
errors of dq and dk over all CASES and SEEDS, as a share of those of plain PyTorch in the same dtype.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "kernels"))
from kernel_oracle import dense_weights, gradients, leaves, upstream

T, WIDTH, VALUES, SEEDS = 40, 5, 3, 25
# offset of the values, size of the scores, what the thresholds are below the largest score (in sizes)
CASES = ((3, 30, 0.05), (10, 30, 0.05), (3, 100, 0.05), (3, 30, 0.3))
HIDDEN = torch.ones(T, T).triu().bool()


def inputs(seed: int, dtype: torch.dtype, offset: float, size: float, below: float) -> list[Tensor]:
    """q, k, v [3, 1, T, ...] and theta [3, 1, T], float64 numbers of `dtype`."""
    torch.manual_seed(seed)
    q, k, v = (torch.randn(3, 1, T, n, dtype=torch.float64) for n in (WIDTH, WIDTH, VALUES))
    q, k, v = (x.to(dtype).double() for x in (q * size, k, v + offset))
    largest = (q @ k.mT).masked_fill(HIDDEN, -torch.inf).amax(-1)
    return [q, k, v, (largest.clamp(min=-1) - below * size).to(dtype).double()]


def plain(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """dq and dk by autograd."""
    q, k, v, theta = leaves(*tensors, dtype=dtype)
    return [x.double() for x in gradients(dense_weights(q, k, theta) @ v, [q, k])]


def imitated(tensors: list[Tensor], dtype: torch.dtype, by_rounded: bool) -> list[Tensor]:
    """dq and dk with the kernels' roundings. by_rounded: divided by the sum of the rounded weights."""
    q, k, v, theta = tensors
    root = ((q @ k.mT).float() - theta[..., None].float()).relu().masked_fill(HIDDEN, 0)
    exact = (root * root).sum(-1, keepdim=True)
    inverse = torch.where(exact == 0, 0, 1 / (exact + 1e-16)).double()
    scale = torch.ones_like(inverse)
    if dtype == torch.float16:  # a power of two, so that the largest weight is from 1 to 4
        scale = torch.exp2(-torch.floor(torch.log2(root.amax(-1, keepdim=True).clamp(min=1e-30)))).double()
    weights = ((root.double() * scale) ** 2).to(dtype).double() / scale**2
    rounded = weights.sum(-1, keepdim=True)
    divided = torch.where(exact == 0, 0, 1 / (rounded + 1e-16)) if by_rounded else inverse
    out = ((weights @ v) * divided).to(dtype)
    grad = upstream(out).double()
    products = grad @ v.mT
    mean = (grad * out.double()).sum(-1, keepdim=True)
    steep = ((exact > 0) & (exact < 1)).any(2, keepdim=True)
    mean = torch.where(steep, ((root * root).double() * inverse * products).sum(-1, keepdim=True), mean)
    before, after = (inverse.sqrt(),) * 2 if dtype == torch.float16 else (torch.ones_like(inverse), inverse)
    slopes = (root.double() * before * (products - mean)).to(dtype).double()
    dq = (2 * after * (slopes @ k)).to(dtype)
    by_key = (root * inverse * (products - mean)).to(dtype).double()
    dk = (2 * (by_key.mT @ q)).to(dtype)
    return [dq.double(), dk.double()]


def worst(dtype: torch.dtype, by_rounded: bool) -> list[float]:
    """Of dq and of dk."""
    shares = []
    for case in CASES:
        for seed in range(SEEDS):
            tensors = inputs(seed, dtype, *case)
            exact, naive = plain(tensors, torch.float64), plain(tensors, dtype)
            ours = imitated(tensors, dtype, by_rounded)
            pairs = zip(ours, naive, exact, strict=True)
            shares.append([float((x - z).abs().max() / (y - z).abs().max()) for x, y, z in pairs])
    return [max(column) for column in zip(*shares, strict=True)]


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print("| divided by the sum of | bfloat16, dq | dk | float16, dq | dk |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, by_rounded in (("exact", False), ("rounded", True)):
        figures = [x for dtype in (torch.bfloat16, torch.float16) for x in worst(dtype, by_rounded)]
        print(f"| the {name} weights | {' | '.join(f'{x:.2f}' for x in figures)} |")


if __name__ == "__main__":
    main()
