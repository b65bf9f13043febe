"""Features mixed along the predicted graphs, layer by layer (paper section 2.2).

Shapes: B batch, T units, Tq the units computed (all of them, or the sampled ones), d width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from glomo_kernels import AffinityStats, affinity_mix
from glomo_kernels.spans import make_spans
from torch import Tensor, nn
from torch.nn import functional as F

from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.graph_predictor import Scores, affinity_kind, floored
from glomo_dist.model.packing import Apart, mix_apart


class Rows(NamedTuple):
    """Which graph entries exist: real units, the units of the query rows, how many edges `topk` keeps."""

    lengths: Tensor | None = None  # [B] int64; None: every unit is real
    positions: Tensor | None = None  # [B, Tq] int64; None: all units, Tq = T
    topk: Tensor | int | None = None  # for sparsity topk [B] int64 or one number; with `apart` [N]
    segments: Tensor | None = None  # [B, T] int64, of packed rows
    apart: Apart | None = None  # of packed rows with topk, whose k differs between documents

    def spans(self, batch: int, units: int, device: torch.device) -> Tensor:
        """The units that each query row may look at, first and behind the last: int64 [B, Tq, 2]."""
        return make_spans(
            batch,
            units,
            device,
            lengths=self.lengths,
            causal=True,
            positions=self.positions,
            segments=self.segments,
        )


class FeaturePredictor(nn.Module):
    """One direction's feature predictor; `step` is one graph layer."""

    def __init__(self, config: GlomoConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        if config.composition == "gru":
            self.cell: nn.Module = nn.GRUCell(2 * d, d)
        elif config.composition == "lstm":
            self.cell = nn.LSTMCell(2 * d, d)
        elif config.value == "linear":
            self.value_maps = nn.ModuleList(nn.Linear(d, d) for _ in range(config.layers))

    def start(self, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
        """f^0 = e, and the LSTM's cell state (zeros) where there is one. embeddings [B, T, d]"""
        memory = torch.zeros_like(embeddings) if self.config.composition == "lstm" else None
        return embeddings, memory

    def step(
        self,
        layer: int,
        state: tuple[Tensor, Tensor | None],
        scores: Scores,
        rows: Rows,
        stats: list[AffinityStats] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """f^l from f^{l-1}.

        state: features [B, T, d] of all units, and the LSTM memory or None.
        scores: of the query rows; with `rows.apart` of all units.
        -> the same for the units of the query rows, [B, Tq, d].  stats: receives the layer's edge statistics.
        """
        features, memory = state
        values = features
        if self.config.composition == "residual" and self.config.value == "linear":
            values = self.value_maps[layer](features)
        values = values.unflatten(2, (self.config.heads, -1)).transpose(1, 2)
        mixed, edges = self._mix(scores, values, rows, stats is not None)
        if stats is not None and edges is not None:
            stats.append(edges)
        m = mixed.transpose(1, 2).flatten(2)  # [B, Tq, d]
        own = gather_units(features, rows.positions)
        if self.config.composition == "residual":
            return own + m, None
        given = torch.cat([m * own, m], dim=2).flatten(0, 1)
        if memory is None:
            return self.cell(given, own.flatten(0, 1)).view_as(own), None
        cell_memory = gather_units(memory, rows.positions)
        h, c = self.cell(given, (own.flatten(0, 1), cell_memory.flatten(0, 1)))
        return h.view_as(own), c.view_as(own)

    def _mix(
        self, scores: Scores, values: Tensor, rows: Rows, with_stats: bool
    ) -> tuple[Tensor, AffinityStats | None]:
        """values [B, H, T, d / H] -> mixed [B, H, Tq, d / H]."""
        if rows.apart is not None:
            assert isinstance(rows.topk, Tensor)
            return mix_apart(rows.apart, scores.queries, scores.keys, values, rows.topk, rows.positions)
        if self.config.edge_floor:
            spans = rows.spans(len(values), values.shape[2], values.device)
            scores = floored(scores, spans, self.config.edge_floor)
        found = affinity_mix(
            scores.queries,
            scores.keys,
            values,
            scores.threshold,
            kind=affinity_kind(self.config),
            lengths=rows.lengths,
            positions=rows.positions,
            segments=rows.segments,
            topk=rows.topk,
            return_stats=with_stats,
        )
        return found if with_stats else (found, None)


def gather_units(x: Tensor, positions: Tensor | None) -> Tensor:
    """x [B, T, d] at positions [B, S] -> [B, S, d]; all units for None."""
    if positions is None:
        return x
    # as rows of one matrix: an embedding's gradient is summed in a fixed order on a GPU too, that of gather is not
    rows = positions + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return F.embedding(rows, x.flatten(0, 1))
