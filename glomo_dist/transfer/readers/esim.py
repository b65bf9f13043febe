"""A reader for pairs of texts: which follows from which, by soft alignment of their words.

Source: Chen et al. 2017, "Enhanced LSTM for Natural Language Inference" (ESIM): encode, align, compare, compose,
pool. Here the words come fused with what their graphs bring, [H ; M H], and both networks may be GRUs.

As a bag it is decomposable attention (Parikh et al. 2016): words are aligned by what they are themselves and compared
by what they are in their context. Context, mixed into what is aligned, hides which words are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glomo_dist.transfer.readers.models import Reader, ReaderSizes
from glomo_dist.transfer.readers.sequences import Sequences, sequence_layer


class PairReader(Reader):
    """Premise and hypothesis -> class logits [B, classes]."""

    def __init__(self, sizes: ReaderSizes) -> None:
        super().__init__()
        hidden = sizes.hidden
        self.encode = sequence_layer(sizes.cell, sizes.width, hidden)
        self.own = sizes.own or sizes.width
        self.attend = sequence_layer("bag", self.own, hidden) if sizes.cell == "bag" else None
        self.compare = nn.Linear(8 * hidden, hidden)
        self.compose = sequence_layer(sizes.cell, hidden, hidden)
        self.dropout = nn.Dropout(sizes.dropout)
        self.decide = nn.Linear(8 * hidden, hidden)
        self.classify = nn.Linear(hidden, sizes.classes)

    def forward(self, premise: Sequences, hypothesis: Sequences) -> Tensor:
        """Units float [B, S, width] and [B, T, width] -> logits float [B, classes]; an empty text counts as one
        zero unit."""
        a, b = (self.encode(text).transpose(0, 1) for text in (premise, hypothesis))  # [B, T, 2 · hidden]
        scores = (
            a @ b.transpose(1, 2) if self.attend is None else self._scores(self.attend, premise, hypothesis)
        )
        aligned = align(scores, a, b, premise.real, hypothesis.real)
        pooled = [
            self._composed(states, other, text)
            for states, other, text in zip((a, b), aligned, (premise, hypothesis), strict=True)
        ]
        together = torch.tanh(self.decide(self.dropout(torch.cat(pooled, -1))))
        return self.classify(self.dropout(together))

    def _scores(self, attend: nn.Module, premise: Sequences, hypothesis: Sequences) -> Tensor:
        """[B, S, T] from the words' own features."""
        a, b = (
            attend(Sequences(text.units[..., : self.own], text.lengths)).transpose(0, 1)
            for text in (premise, hypothesis)
        )
        return a @ b.transpose(1, 2)

    def _composed(self, states: Tensor, aligned: Tensor, text: Sequences) -> Tensor:
        """Mean and maximum over the words of their comparison, read in order: [B, 4 · hidden]."""
        compared = self.compare(torch.cat([states, aligned, states - aligned, states * aligned], -1)).relu()
        composed = self.compose(Sequences(self.dropout(compared), text.lengths)).transpose(0, 1)
        real = text.real[..., None]
        mean = (composed * real).sum(1) / real.sum(1)
        return torch.cat([mean, composed.masked_fill(~real, float("-inf")).amax(1)], -1)


def align(scores: Tensor, a: Tensor, b: Tensor, real_a: Tensor, real_b: Tensor) -> tuple[Tensor, Tensor]:
    """For every word of `a` the mean of the words of `b`, weighted by softmax of their scores, and vice versa.

    scores [B, S, T], a [B, S, D], b [B, T, D], real_a [B, S], real_b [B, T] -> [B, S, D], [B, T, D]. ESIM equations
    11 to 13.
    """
    over_b = scores.masked_fill(~real_b[:, None], float("-inf")).softmax(2)
    over_a = scores.masked_fill(~real_a[:, :, None], float("-inf")).softmax(1)
    return over_b @ b, over_a.transpose(1, 2) @ a
