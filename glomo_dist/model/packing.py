"""Rows that hold several documents side by side: what keeps the documents apart.

`segments` int64 [B, T]: the number of each unit's document, equal numbers side by side, -1 after the row's length.
In both directions a document keeps its place in the row; in the backward direction it is reversed within it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from glomo_kernels import AffinityStats, affinity_mix
from glomo_kernels.spans import documents
from torch import Tensor


class Packed(NamedTuple):
    """Of every unit its document's number, first unit, and first unit behind it: int64 [B, T] each.

    Padding is of no document: its end is 0, so that no unit follows one there.
    """

    segments: Tensor
    begin: Tensor
    end: Tensor

    @classmethod
    def of(cls, segments: Tensor) -> Packed:
        begin, end = documents(segments)
        return cls(segments, begin, torch.where(segments >= 0, end, 0))

    def reversal(self) -> Tensor:
        """Index that reverses each document in its place and leaves padding alone: int64 [B, T]."""
        at = torch.arange(self.segments.shape[1], device=self.segments.device).expand_as(self.segments)
        return torch.where(self.segments >= 0, self.begin + self.end - 1 - at, at)

    def before(self) -> Tensor:
        """How many units of its own document come before each unit: int64 [B, T]."""
        return torch.arange(self.segments.shape[1], device=self.segments.device) - self.begin


class Apart(NamedTuple):
    """The documents of packed rows, each in a row of its own: for what differs between them, such as topk's k.

    units int64 [N, L]: place in the flattened [B * T] of each document's units (padding: 0); lengths int64 [N];
    back int64 [B, T]: the place of each unit in the flattened [N * L]; real bool [B, T].
    """

    units: Tensor
    lengths: Tensor
    back: Tensor
    real: Tensor

    @classmethod
    def of(cls, packed: Packed) -> Apart:
        real = packed.segments >= 0
        before = packed.before()
        document = ((before == 0) & real).flatten().cumsum(0).view_as(real) - 1
        lengths = document[real].bincount(minlength=1)  # padding alone is a document of nothing
        longest = max(int(lengths.max()), 1)
        back = torch.where(real, document * longest + before, 0)
        units = lengths.new_zeros(len(lengths) * longest)
        units[back[real]] = real.flatten().nonzero().squeeze(1)
        return cls(units.view(-1, longest), lengths, back, real)

    def split(self, x: Tensor) -> Tensor:
        """x [B, H, T, ...] -> [N, H, L, ...]"""
        return x.transpose(1, 2).flatten(0, 1)[self.units].transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """x [N, H, L, ...] -> [B, H, T, ...], 0 at padding."""
        joined = x.transpose(1, 2).flatten(0, 1)[self.back].transpose(1, 2)
        real = self.real[:, None, :].reshape(len(joined), 1, -1, *[1] * (x.ndim - 3))
        return torch.where(real, joined, torch.zeros((), dtype=x.dtype, device=x.device))


def mix_apart(
    apart: Apart, q: Tensor, k: Tensor, v: Tensor, topk: Tensor, positions: Tensor | None
) -> tuple[Tensor, AffinityStats]:
    """`affinity_mix` of kind topk with a k for each document. q, k, v [B, H, T, ...]: of all units; topk int64 [N].

    -> mixed [B, H, Tq, Dv] at `positions` int64 [B, Tq] (None: all units), and statistics without `live`.
    """
    mixed, stats = affinity_mix(
        *(apart.split(x) for x in (q, k, v)), kind="topk", lengths=apart.lengths, topk=topk, return_stats=True
    )
    found = [apart.join(x) for x in (mixed, *stats[:3])]
    if positions is not None:
        found = [_at(x, positions) for x in found]
    joined, norm, edges, entropy = found
    return joined, AffinityStats(norm, edges, entropy, stats.live)


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, H, T, ...] at positions [B, S] -> [B, H, S, ...]"""
    index = positions.view(len(x), 1, -1, *[1] * (x.ndim - 3))
    return x.gather(2, index.expand(-1, x.shape[1], -1, *x.shape[3:]))
