"""The two numbers of each op: arithmetic it must do and bytes it must move, and the floor that follows from them.

FLOPs are 2 per multiply-add of the matrix products, over the pairs (i, j) that count: T^2 / 2 in causal order, as
others count them. Bytes are each input read once and each output written once. No version runs much faster than
the larger of FLOPs / rate and bytes / bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple


class Ceilings(NamedTuple):
    """What a machine can do. copy: GB/s read and written; half, single: TFLOP/s of large products."""

    copy: float
    half: float
    single: float


# An H200 as its maker publishes it (dense, without sparsity).
PUBLISHED = Ceilings(4800.0, 989.0, 67.0)


class Work(NamedTuple):
    """flops that count, bytes, and `done`: the FLOPs of our kernels, which compute some products twice."""

    flops: float
    bytes: float
    done: float
    half: bool = True

    def floor_ms(self, ceilings: Ceilings) -> tuple[float, str]:
        """(milliseconds, what limits)."""
        rate = ceilings.half if self.half else ceilings.single
        arithmetic, memory = self.flops / rate * 1e-9, self.bytes / ceilings.copy * 1e-6
        return max(arithmetic, memory), "products" if arithmetic >= memory else "memory"

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.done + other.done, self.half)


def affinity_mix(
    b: int, h: int, t: int, width: int, values: int, *, size: int = 2, live: float = 1.0
) -> tuple[Work, Work]:
    """(forward, backward), causal. size: bytes of an element.  live: share of the tiles that have an edge.

    Backward: q k^T, dO v^T, and the products that give dq, dk, dv. Two kernels without atomics do the first two
    each. Forward has to look at every tile, so a dead one saves the backward pass alone; in half precision it sums
    the rounded weights by a product with 16 columns.
    """
    pairs = b * h * t * t / 2
    rows = b * h * t
    tensors = rows * (2 * width + 2 * values) * size
    sums = 16 if size == 2 else 0
    forward = Work(
        2 * pairs * (width + live * values), tensors + 8 * rows, 2 * pairs * (width + values + sums)
    )
    backward = Work(
        2 * pairs * live * (3 * width + 2 * values),
        2 * tensors + 20 * rows,
        2 * pairs * live * (4 * width + 3 * values),
    )
    return forward, backward


def affinity_graph(b: int, h: int, t: int, width: int, edges: int, *, size: int = 2) -> Work:
    """Scores once; q and k read, offsets, columns and weights written. Counting and filling each compute scores."""
    flops = 2 * b * h * t * t / 2 * width
    moved = 2 * b * h * t * width * size + 8 * b * h * t + 8 * edges
    return Work(flops, moved, 2 * flops, size == 2)


def graph_mix(b: int, t: int, width: int, edges: int, components: int) -> Work:
    """Forward, and the gradients of weights and features, float32: 3 products over the edges."""
    flops = 3 * 2 * edges * width
    moved = 3 * 8 * edges + 4 * b * t * (5 * width + 2 * components)
    return Work(flops, moved, flops, False)


def decoder_loss(n: int, width: int, words: int, *, size: int = 2) -> Work:
    """Loss and both gradients: three products of [n, width] x [width, words]."""
    flops = 3 * 2 * n * width * words
    return Work(flops, size * 2 * (n + words) * width, flops, size == 2)
