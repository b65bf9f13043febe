"""The whole model, as in the paper's figure 1: embed, predict graphs, predict features, decode the context.

Two directions with their own parameters; in both, unit i looks only at units j < i of its own direction. The
backward direction reads the sequence reversed within its length, so padding stays at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from glomo_kernels import AffinityStats, SparseGraph, affinity_graph
from glomo_kernels.checks import readable
from torch import Tensor, nn

from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.decoder import Decoder
from glomo_dist.model.feature_predictor import FeaturePredictor, Rows, gather_units
from glomo_dist.model.graph_predictor import (
    GraphPredictor,
    Scores,
    affinity_kind,
    empty_row_hinge,
    floored,
    topk_per_sample,
)
from glomo_dist.model.graph_stats import row_sums
from glomo_dist.model.packing import Apart, Packed
from glomo_dist.runtime.errors import ConfigError


class LossTerms(NamedTuple):
    """Summed cross-entropy over both directions (nats) and the number of predicted units behind it.

    penalty: what `empty_row_penalty` adds to the sum that is trained on; 0 in evaluation.
    """

    loss_sum: Tensor
    targets: Tensor
    penalty: Tensor


class Direction(nn.Module):
    """Graph predictor, feature predictor and decoder of one direction."""

    def __init__(self, config: GlomoConfig) -> None:
        super().__init__()
        self.graph_predictor = GraphPredictor(config)
        self.feature_predictor = FeaturePredictor(config)
        self.decoder = Decoder(config)


class Glomo(nn.Module):
    """GLoMo for words (1-D) or pixels (2-D, `config.image`).

    collect_stats: while True, each training forward fills `last_sums`, of both directions together
        (`graph_stats.row_sums`); they can be added up over passes before `row_means`.
    """

    def __init__(self, config: GlomoConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ConfigError(
                "model.vocab_size is 0: it must be filled in from the tokenizer before building."
            )
        if config.distance == "rotary_2d" and config.image is None:
            raise ConfigError(
                "model.distance rotary_2d is for images: model.image (height, width) is missing."
            )
        self.config = config
        self.embedding = nn.Embedding(
            config.vocab_size, config.width, scale_grad_by_freq=config.scale_grad_by_freq
        )
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        # named as the authors' two directions; "forward" itself is taken by nn.Module
        self.forwards = Direction(config)
        self.backwards = Direction(config)
        self.collect_stats = False
        self.last_sums: Tensor | None = None

    def forward(
        self, tokens: Tensor, lengths: Tensor, positions: Tensor, segments: Tensor | None = None
    ) -> LossTerms:
        """Loss of predicting the context of sampled units.

        tokens [B, T] int64 (padding: any valid id), lengths [B] int64, positions [2, B, S] int64: the sampled
        units of each direction, counted in that direction's own order.
        segments [B, T] int64: for rows of several documents side by side, see `model.packing`. The loss is that of
        the documents in rows of their own (but for batch statistics and the dropout mask, which a row shares).
        Raises ValueError for sizes that do not fit, T = 0 among them: a batch without a unit has no loss.
        """
        self._check(tokens, lengths)
        if not tokens.shape[1]:
            raise ValueError(
                "Glomo: no text of the batch has a unit (T = 0), so there is no loss; leave it out."
            )
        if segments is not None and self.config.image is not None:
            raise ValueError("Glomo: images cannot be packed, each is a row; leave segments out")
        packed = None if segments is None else Packed.of(segments)
        embeddings = self._embed(tokens, lengths)
        stats: list[list[AffinityStats]] | None = [] if self.collect_stats and self.training else None
        loss_sum, penalty, targets = (x.new_zeros(()) for x in (embeddings, embeddings, lengths))
        for direction, at in zip((self.forwards, self.backwards), positions, strict=True):
            e, ids = embeddings, tokens
            if direction is self.backwards:
                order = reversal(lengths, tokens.shape[1]) if packed is None else packed.reversal()
                e, ids = gather_units(embeddings, order), tokens.gather(1, order)
            layer_stats: list[AffinityStats] | None = None if stats is None else []
            states, hinge = self._features(direction, e, lengths, at, packed, layer_stats)
            ends = lengths[:, None] if packed is None else packed.end.gather(1, at)
            predicted = (ends - 1 - at).clamp(0, self.config.decoder_steps)
            term, count = direction.decoder(states, e, ids, at, ends, self.embedding.weight)
            loss_sum, targets = loss_sum + term, targets + count
            penalty = penalty + (hinge * predicted).sum()
            if stats is not None and layer_stats is not None:
                stats.append(layer_stats)
        if stats is not None:
            self.last_sums = row_sums(stats, lengths, positions, packed)
        return LossTerms(loss_sum, targets, penalty * self.config.empty_row_penalty)

    def _embed(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """[B, T, d]; padding is not looked up where that would count as a unit of the batch, it is zero there."""
        if not self.config.scale_grad_by_freq:
            return self.embedding(tokens)
        real = unit_mask(lengths, tokens).bool()
        looked_up = self.embedding(tokens[real])
        return looked_up.new_zeros(*tokens.shape, self.config.width).masked_scatter(
            real[..., None], looked_up
        )

    def _features(
        self,
        direction: Direction,
        e: Tensor,
        lengths: Tensor,
        at: Tensor,
        packed: Packed | None,
        stats: list[AffinityStats] | None,
    ) -> tuple[Tensor, Tensor]:
        """f^L at the units `at` [B, S]; the last layer is computed only there, since only they reach the loss.

        And the hinge of their rows [B, S], mean over layers and heads.
        """
        graph_predictor, feature_predictor = direction.graph_predictor, direction.feature_predictor
        before, mask = None if packed is None else packed.before(), unit_mask(lengths, e)
        keys, queries = graph_predictor(e, mask, before)
        apart = Apart.of(packed) if packed is not None and self.config.sparsity == "topk" else None
        segments = None if packed is None else packed.segments
        topk = topk_per_sample(self.config, lengths if apart is None else apart.lengths)
        state, hinge = feature_predictor.start(e), e.new_zeros(at.shape)
        for layer in range(self.config.layers):
            if self.config.coupled and layer:
                keys, queries = graph_predictor(state[0], mask, before)
            last = layer == self.config.layers - 1
            positions = at if last else None
            asked = None if apart is not None else positions
            scores = graph_predictor.scores(layer, keys, gather_units(queries, asked), asked)
            rows = Rows(lengths, positions, topk, segments, apart)
            if self.config.empty_row_penalty and self.training:
                spans = rows._replace(positions=at).spans(e.shape[0], e.shape[1], e.device)
                hinge = hinge + empty_row_hinge(scores if last else of_rows(scores, at), spans)
            state = feature_predictor.step(layer, state, scores, rows, stats)
        return state[0], hinge / self.config.layers

    def graphs(
        self, tokens: Tensor, lengths: Tensor, keep: int | None = None
    ) -> tuple[SparseGraph, SparseGraph]:
        """The predicted graphs, forward and backward, each of shape (B, layers * heads, T), layer-major.

        Both in the units' own order: row i of the backward graph has columns j > i.
        tokens [B, T] int64, lengths [B] int64; keep: at most so many largest edges per row, renormalised.
        Raises ValueError for sizes that do not fit and, on the CPU, for ids beyond the vocabulary.
        """
        self._check(tokens, lengths)
        try:
            embeddings = self.embedding(tokens)
        except IndexError:  # of the CPU alone: to look at ids on a GPU would wait for it
            raise ValueError(
                f"Glomo: the ids in tokens must be from 0 to {self.config.vocab_size - 1}, got "
                f"{int(tokens.min())} to {int(tokens.max())}. Encode the texts with the tokenizer of this model."
            ) from None
        if not tokens.shape[1]:  # every text is empty, which a convolution does not take
            nothing = embeddings.new_zeros(
                len(tokens), self.config.layers * self.config.heads, 0, self.config.graph_width
            )
            empty = affinity_graph(nothing, nothing, lengths=lengths, keep=keep)
            return empty, empty
        order = reversal(lengths, tokens.shape[1])
        forward = self._direction_graph(self.forwards, embeddings, lengths, keep)
        backward = self._direction_graph(self.backwards, gather_units(embeddings, order), lengths, keep)
        return forward, reverse_graph(backward, lengths)

    def _direction_graph(
        self, direction: Direction, e: Tensor, lengths: Tensor, keep: int | None
    ) -> SparseGraph:
        predictor, mask = direction.graph_predictor, unit_mask(lengths, e)
        rows = Rows(lengths, topk=topk_per_sample(self.config, lengths))
        spans = rows.spans(e.shape[0], e.shape[1], e.device)
        keys, queries = predictor(e, mask)
        state: tuple[Tensor, Tensor | None] = direction.feature_predictor.start(e)
        layers: list[Scores] = []
        for layer in range(self.config.layers):
            if self.config.coupled and layer:
                state = direction.feature_predictor.step(layer - 1, state, layers[-1], rows)
                keys, queries = predictor(state[0], mask)
            layers.append(floored(predictor.scores(layer, keys, queries), spans, self.config.edge_floor))
        thresholds = [s.threshold for s in layers if s.threshold is not None]
        return affinity_graph(
            torch.cat([s.queries for s in layers], dim=1),
            torch.cat([s.keys for s in layers], dim=1),
            torch.cat(thresholds, dim=1) if thresholds else None,
            kind=affinity_kind(self.config),
            lengths=lengths,
            topk=rows.topk,
            keep=keep,
        )

    def _check(self, tokens: Tensor, lengths: Tensor) -> None:
        if not (isinstance(tokens, Tensor) and isinstance(lengths, Tensor)):
            raise TypeError(
                "Glomo: tokens [B, T] and lengths [B] must be tensors, got "
                f"{type(tokens).__name__} and {type(lengths).__name__}"
            )
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise ValueError(
                f"Glomo: tokens must be [B, T] and lengths [B], got {tuple(tokens.shape)} and "
                f"{tuple(lengths.shape)}"
            )
        image = self.config.image
        if image is not None and tokens.shape[1] != image[0] * image[1]:
            raise ValueError(
                f"Glomo: this model is for images of {image[0]} x {image[1]} pixels "
                f"({image[0] * image[1]} units), got {tokens.shape[1]} units"
            )
        if image is not None and readable(lengths):
            short = lengths[(lengths != tokens.shape[1]) & (lengths != 0)]
            if len(short):  # reversed within such a length, pixels would lie in other rows and columns
                raise ValueError(
                    f"Glomo: an image has all of its {tokens.shape[1]} pixels, or none, got a length of "
                    f"{int(short[0])}"
                )


def of_rows(scores: Scores, positions: Tensor) -> Scores:
    """Of queries of all units those of the units `positions` [B, S]."""
    heads = scores.queries.shape[1]

    def taken(x: Tensor) -> Tensor:  # [B, H, T, n] -> [B, H, S, n]
        rows = gather_units(x.transpose(1, 2).flatten(2), positions)
        return rows.unflatten(2, (heads, -1)).transpose(1, 2)

    threshold = scores.threshold
    return Scores(
        taken(scores.queries),
        scores.keys,
        None if threshold is None else taken(threshold[..., None]).squeeze(3),
    )


def unit_mask(lengths: Tensor, like: Tensor) -> Tensor:
    """1 for real units, 0 for padding: [B, T] of like's dtype. like [B, T, ...]"""
    return (torch.arange(like.shape[1], device=lengths.device) < lengths[:, None]).to(like.dtype)


def reversal(lengths: Tensor, units: int) -> Tensor:
    """Index that reverses each sequence within its length and leaves padding alone: int64 [B, units]."""
    at = torch.arange(units, device=lengths.device).expand(len(lengths), -1)
    mirrored = lengths[:, None] - 1 - at
    return torch.where(mirrored >= 0, mirrored, at)


def reverse_graph(graph: SparseGraph, lengths: Tensor) -> SparseGraph:
    """The same graph with units counted from the other end of each sequence, columns ascending again.

    Padding rows are empty and last, so the edges of one (sample, component) are one run; reversing the run
    reverses the rows and the columns within each row at once.
    """
    B, C, T = graph.shape
    offsets = graph.offsets
    counts = offsets.diff().view(B, C, T)
    counts = counts.gather(2, reversal(lengths, T)[:, None].expand(B, C, T))
    starts, ends = offsets[:-1:T], offsets[T::T]
    run = torch.repeat_interleave(torch.arange(B * C, device=offsets.device), ends - starts)
    edge = starts[run] + ends[run] - 1 - torch.arange(len(run), device=offsets.device)
    columns = lengths[run // C] - 1 - graph.columns[edge]
    new_offsets = torch.cat([offsets.new_zeros(1), counts.flatten().cumsum(0)])
    return SparseGraph(new_offsets, columns.to(graph.columns.dtype), graph.weights[edge], graph.shape)
