"""Key and query CNNs, and the maps from their outputs to the scores of each layer and head.

Shapes: B batch, T units, d width, H heads, Dg head width. Source: paper section 2.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from glomo_kernels.scores import compute_dtype
from glomo_kernels.spans import outside
from torch import Tensor, nn
from torch.nn import functional as F

from glomo_dist.model.config import MARGIN, GlomoConfig
from glomo_dist.model.convolutions import CausalConv1d, CausalConv2d, LockedDropout

# Texts here have some hundreds of words; RoFormer's 10,000 leaves half of the pairs nearly still.
LONGEST_TURN = 1000
FLOOR_ELEMENTS = 1 << 22  # scores that `floored` looks at in one piece


class Scores(NamedTuple):
    """What the affinity ops need for one layer: s_ij = queries_i . keys_j - threshold_i."""

    queries: Tensor  # [B, H, Tq, Dg]
    keys: Tensor  # [B, H, T, Dg]
    threshold: Tensor | None  # [B, H, Tq]


class GraphPredictor(nn.Module):
    """Units' embeddings -> the scores of every layer and head, for one direction."""

    def __init__(self, config: GlomoConfig) -> None:
        super().__init__()
        self.config = config
        d, out = config.width, config.graph_width * config.heads

        def cnn(layers: int) -> nn.ModuleList:
            if config.image is None:
                return nn.ModuleList(CausalConv1d(d, config.kernel_size, config.norm) for _ in range(layers))
            return nn.ModuleList(
                CausalConv2d(d, config.kernel_size, config.norm, config.image) for _ in range(layers)
            )

        self.key_cnn, self.query_cnn = cnn(config.key_layers), cnn(config.query_layers)
        self.key_maps = nn.ModuleList(nn.Linear(d, out) for _ in range(config.layers))
        self.query_maps = nn.ModuleList(nn.Linear(d, out) for _ in range(config.layers))
        if config.sparsity == "threshold":
            # one map per layer, shared by its heads
            thresholds = [nn.Linear(config.graph_width, 1) for _ in range(config.layers)]
            self.thresholds = nn.ModuleList(thresholds)
            if config.threshold_init is not None:
                for threshold in thresholds:
                    nn.init.zeros_(threshold.weight)
                    nn.init.constant_(threshold.bias, config.threshold_init)
        elif config.sparsity == "bias":
            start = 1e-4 if config.threshold_init is None else config.threshold_init
            self.biases = nn.Parameter(torch.full((config.layers,), start))
        self.dropout = LockedDropout(config.dropout)

    def forward(
        self, embeddings: Tensor, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """embeddings [B, T, d]; mask [B, T], 1 where the unit is real -> key and query features [B, T, d].

        before int64 [B, T]: for packed rows, how many units of its own document come before each unit.
        """
        return (
            self._run(self.key_cnn, embeddings, mask, before),
            self._run(self.query_cnn, embeddings, mask, before),
        )

    def _run(self, cnn: nn.ModuleList, x: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
        x = self.dropout(x)
        for block in cnn:
            x = block(x if mask is None else x * mask[:, :, None], before)
        return x

    def scores(
        self, layer: int, key_features: Tensor, query_features: Tensor, positions: Tensor | None = None
    ) -> Scores:
        """key_features [B, T, d], query_features [B, Tq, d] -> scores of one layer.

        positions int64 [B, Tq]: of which units the queries are (None: of all).
        """

        def heads(x: Tensor) -> Tensor:  # [B, T, H*Dg] -> [B, H, T, Dg]
            return x.unflatten(2, (self.config.heads, self.config.graph_width)).transpose(1, 2)

        queries = heads(self.query_maps[layer](query_features))
        keys = heads(self.key_maps[layer](key_features))
        if self.config.score == "scaled":
            queries = queries * self.config.graph_width**-0.5
        elif self.config.score == "cosine":
            queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        threshold = None
        if self.config.sparsity == "threshold":
            threshold = self.thresholds[layer](queries).squeeze(-1)
        elif self.config.sparsity == "bias":
            threshold = self.biases[layer].expand(queries.shape[:3])
        if self.config.distance != "none":
            at = torch.arange(keys.shape[2], device=keys.device)
            queries = self._turned(queries, at if positions is None else positions[:, None])
            keys = self._turned(keys, at)
        return Scores(queries, keys, threshold)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, H, T, Dg] turned by each unit's place in the sequence, or half of it by row, half by column."""
        if self.config.distance == "rotary":
            return turned(x, positions)
        assert self.config.image is not None  # as the configuration asks of rotary_2d
        columns = self.config.image[1]
        by_row, by_column = x.chunk(2, -1)
        return torch.cat([turned(by_row, positions // columns), turned(by_column, positions % columns)], -1)


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, H, T, Dg] with its pairs of features turned by an angle that grows with the unit's position.

    positions int64, broadcast over [B, H, T]. The product of two turned vectors depends on the difference of their
    positions alone. Source: Su et al. 2021, RoFormer, equation 15, with wavelengths from 2 pi to 2 pi LONGEST_TURN.
    """
    half = x.shape[-1] // 2
    precision = torch.promote_types(x.dtype, torch.float32)
    speed = LONGEST_TURN ** (-torch.arange(half, device=x.device, dtype=precision) / half)
    angle = positions[..., None].to(precision) * speed
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def floored(scores: Scores, spans: Tensor, floor: int) -> Scores:
    """The thresholds lowered to MARGIN below the score of each row's `floor` largest, or of all that it has.

    spans int64 [B, Tq, 2]: the units that a row may look at. A threshold that is lowered has no gradient.
    The thresholds returned are float32 at least: in half precision MARGIN is less than a large score's last digit.
    """
    if floor == 0 or scores.threshold is None or scores.threshold.numel() == 0:
        return scores
    queries, keys = scores.queries, scores.keys
    most = min(floor, keys.shape[2])
    place = (spans[..., 1] - spans[..., 0]).clamp(1, most)[:, None, :, None] - 1
    step = max(1, FLOOR_ELEMENTS // (queries[0, :, :, 0].numel() * keys.shape[2]))
    with torch.no_grad():
        limits = []
        for part in (slice(b, b + step) for b in range(0, len(queries), step)):
            q, k = (x[part].to(compute_dtype(x)) for x in (queries, keys))
            found = (q @ k.transpose(2, 3)).masked_fill_(outside(spans[part], keys.shape[2]), -torch.inf)
            found = found.topk(most, dim=3).values
            limits.append(found.gather(3, place[part].expand(-1, found.shape[1], -1, -1)).squeeze(3))
        limit = torch.cat(limits)
        limit = torch.where(limit == -torch.inf, torch.inf, limit - MARGIN)
    return Scores(queries, keys, torch.minimum(scores.threshold.to(limit.dtype), limit))


def empty_row_hinge(scores: Scores, spans: Tensor) -> Tensor:
    """max(0, MARGIN - the row's largest score), mean over the heads: [B, Tq]; 0 for rows that may look at nothing."""
    found = scores.queries @ scores.keys.transpose(2, 3)
    if scores.threshold is not None:
        found = found - scores.threshold[..., None]
    found = found.masked_fill(outside(spans, found.shape[3]), -torch.inf).amax(3)
    possible = (spans[..., 1] > spans[..., 0])[:, None]
    return F.relu(MARGIN - found.masked_fill(~possible, MARGIN)).mean(1)


def affinity_kind(config: GlomoConfig) -> str:
    """The op's name for the config's sparsity: threshold and bias are `relu` with a threshold."""
    return "relu" if config.sparsity in ("threshold", "bias") else config.sparsity


def topk_per_sample(config: GlomoConfig, lengths: Tensor) -> Tensor | None:
    """k = floor(rate * sqrt(length)), at least 1, int64 [B]; from each sample's own length, so padding is inert."""
    if config.sparsity != "topk":
        return None
    k = torch.floor(lengths.double().sqrt() * config.topk_rate)
    # not as whole numbers: k may be more than 64 bits hold
    return torch.minimum(k, lengths.double()).clamp(min=1).long()
