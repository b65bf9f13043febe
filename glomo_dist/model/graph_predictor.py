"""Key and query CNNs, and the maps from their outputs to the scores of each layer and head.

Shapes: B batch, T units, d width, H heads, Dg head width. Source: paper section 2.1; DESIGN section 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glomo_dist.model.config import GlomoConfig


class Scores(NamedTuple):
    """What the affinity ops need for one layer: s_ij = queries_i . keys_j - threshold_i."""

    queries: Tensor  # [B, H, Tq, Dg]
    keys: Tensor  # [B, H, T, Dg]
    threshold: Tensor | None  # [B, H, Tq]


class LockedDropout(nn.Module):
    """Dropout that drops the same features in every unit of a sequence. [B, T, d] -> [B, T, d]"""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.rate)


class CausalConv1d(nn.Module):
    """Conv1d + normalisation + ReLU in which unit i sees units i - kernel_size + 1 .. i. [B, T, d] -> same"""

    def __init__(self, width: int, kernel_size: int, norm: str) -> None:
        super().__init__()
        self.tail = kernel_size - 1
        self.conv = nn.Conv1d(width, width, kernel_size)
        self.norm: nn.Module = nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """before int64 [B, T]: units of its own document before each unit, where a row holds several documents."""
        if before is not None:
            x = self._apart(x, before)
            if isinstance(self.norm, nn.LayerNorm):
                return F.relu(self.norm(x))
            return F.relu(self.norm(x.transpose(1, 2))).transpose(1, 2)
        T = x.shape[1]
        x = x.transpose(1, 2)
        if isinstance(self.norm, nn.LayerNorm):
            x = self.conv(F.pad(x, (self.tail, 0))).transpose(1, 2)
            return F.relu(self.norm(x))
        # The authors pad on both sides and cut after normalising, so the batch statistics include the tail.
        x = self.norm(self.conv(F.pad(x, (self.tail, self.tail))))
        return F.relu(x[:, :, :T]).transpose(1, 2)

    def _apart(self, x: Tensor, before: Tensor) -> Tensor:
        """The convolution with zeros before each document, as a product with the units that each unit sees."""
        seen = [
            F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * (before >= back)[:, :, None]
            for back in range(self.tail, -1, -1)
        ]
        weight = self.conv.weight.transpose(1, 2).flatten(1)  # [d, kernel_size * d]
        return F.linear(torch.cat(seen, dim=2), weight, self.conv.bias)


class CausalConv2d(nn.Module):
    """The same for pixels: a pixel sees only itself and its neighbours that come before it in raster order.

    The kernel covers the rows above and the current row up to the pixel itself. [B, T, d] -> [B, T, d]
    """

    mask: Tensor

    def __init__(self, width: int, kernel_size: int, norm: str, image: tuple[int, ...]) -> None:
        super().__init__()
        self.image = image
        self.side = kernel_size // 2
        rows = self.side + 1
        self.conv = nn.Conv2d(width, width, (rows, kernel_size))
        self.norm: nn.Module = nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm2d(width)
        mask = torch.ones(rows, kernel_size)
        mask[-1, self.side + 1 :] = 0.0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, before: None = None) -> Tensor:
        B, T, d = x.shape
        planes = x.transpose(1, 2).reshape(B, d, *self.image)
        planes = F.pad(planes, (self.side, self.side, self.side, 0))
        planes = F.conv2d(planes, self.conv.weight * self.mask, self.conv.bias)
        if isinstance(self.norm, nn.LayerNorm):
            return F.relu(self.norm(planes.reshape(B, d, T).transpose(1, 2)))
        return F.relu(self.norm(planes)).reshape(B, d, T).transpose(1, 2)


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
            self.thresholds = nn.ModuleList(nn.Linear(config.graph_width, 1) for _ in range(config.layers))
        elif config.sparsity == "bias":
            self.biases = nn.Parameter(torch.full((config.layers,), 1e-4))
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

    def scores(self, layer: int, key_features: Tensor, query_features: Tensor) -> Scores:
        """key_features [B, T, d], query_features [B, Tq, d] (all units or some) -> scores of one layer."""

        def heads(x: Tensor) -> Tensor:  # [B, T, H*Dg] -> [B, H, T, Dg]
            return x.unflatten(2, (self.config.heads, self.config.graph_width)).transpose(1, 2)

        queries = heads(self.query_maps[layer](query_features))
        keys = heads(self.key_maps[layer](key_features))
        threshold = None
        if self.config.sparsity == "threshold":
            threshold = self.thresholds[layer](queries).squeeze(-1)
        elif self.config.sparsity == "bias":
            threshold = self.biases[layer].to(queries.dtype).expand(queries.shape[:3])
        return Scores(queries, keys, threshold)


def affinity_kind(config: GlomoConfig) -> str:
    """The op's name for the config's sparsity: threshold and bias are `relu` with a threshold."""
    return "relu" if config.sparsity in ("threshold", "bias") else config.sparsity


def topk_per_sample(config: GlomoConfig, lengths: Tensor) -> Tensor | None:
    """k = floor(rate * sqrt(length)), at least 1, int64 [B]; from each sample's own length, so padding is inert."""
    if config.sparsity != "topk":
        return None
    k = torch.floor(lengths.double().sqrt() * config.topk_rate).long()
    return torch.minimum(k.clamp(min=1), lengths.clamp(min=1))


def topk_of_row(config: GlomoConfig, units: int) -> int | None:
    """The authors' k: from the padded length of the batch."""
    if config.sparsity != "topk":
        return None
    return min(max(int(math.sqrt(units) * config.topk_rate), 1), units)
