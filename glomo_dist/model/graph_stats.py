"""What is told about the graphs of a training pass: sums over its rows, which passes and ranks can add up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from glomo_kernels import AffinityStats
from torch import Tensor

from glomo_dist.model.packing import Packed


@torch.no_grad()
def row_sums(
    stats: Sequence[Sequence[AffinityStats]], lengths: Tensor, positions: Tensor, packed: Packed | None
) -> Tensor:
    """Over the rows that have at least one unit to look at: float64 [4, layers, heads], see `row_means`.

    stats: of each direction, per layer.  lengths [B], positions [2, B, S]: the rows of the last layer.
    """
    layers: list[Tensor] = []
    for directions in zip(*stats, strict=True):
        last = len(layers) == len(stats[0]) - 1
        of_layer: list[Tensor] = []
        for s, sampled in zip(directions, positions, strict=True):
            at = sampled if last else torch.arange(s.row_sum.shape[2], device=lengths.device)
            at = at.expand(len(lengths), -1)
            begin = 0 if packed is None else packed.begin.gather(1, at)
            possible = ((at > begin) & (at < lengths[:, None]))[:, None]  # [B, 1, Tq]
            has_edges = (s.edges > 0) & possible
            counted = (possible.expand_as(has_edges), has_edges, s.edges * possible, s.entropy * has_edges)
            of_layer.append(torch.stack([x.sum((0, 2), dtype=torch.float64) for x in counted]))
        layers.append(torch.stack(of_layer).sum(0))
    return torch.stack(layers, dim=1)


def row_means(sums: Tensor) -> dict[str, Tensor]:
    """What a row has in the mean, float64 [layers, heads]: `empty_rows`, the share of rows that could have edges and
    have none, `edges_per_row`, and `entropy` (nats, of the rows with edges).

    sums [4, layers, heads]: rows, rows with edges, edges, entropy.
    """
    rows, live, edges, entropy = sums
    return {
        "empty_rows": (rows - live) / rows.clamp(min=1),
        "edges_per_row": edges / rows.clamp(min=1),
        "entropy": entropy / live.clamp(min=1),
    }
