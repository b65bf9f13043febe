"""A reader that marks the answer in a paragraph: bidirectional attention flow, self-attention, start and end.

Sources: Seo et al. 2017, "Bidirectional Attention Flow for Machine Comprehension"; Clark and Gardner 2018, "Simple
and Effective Multi-Paragraph Reading Comprehension", whose order of layers this is. Here the words come fused with
what their graphs bring, [H ; M H].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glomo_dist.transfer.readers.models import Reader, ReaderSizes
from glomo_dist.transfer.readers.sequences import Sequences, sequence_layer

LONGEST = 17  # words of a predicted answer, as in Clark and Gardner 2018
IGNORED = -100  # the label cross_entropy leaves out


class SpanReader(Reader):
    """Paragraph and question -> logits [B, 2, T] of the answer's first and last word."""

    def __init__(self, sizes: ReaderSizes) -> None:
        super().__init__()
        hidden, width = sizes.hidden, 2 * sizes.hidden
        self.dropout = nn.Dropout(sizes.dropout)
        self.encode = sequence_layer(sizes.cell, sizes.width, hidden)
        self.flow = Trilinear(width)
        self.merge = nn.Linear(4 * width, width)
        self.again = sequence_layer(sizes.cell, width, hidden)
        self.own = Trilinear(width)
        self.residual = nn.Linear(3 * width, width)
        self.first = sequence_layer(sizes.cell, width, hidden)
        self.last = sequence_layer(sizes.cell, 2 * width, hidden)
        self.score = nn.ModuleList([nn.Linear(width, 1), nn.Linear(width, 1)])

    def forward(self, paragraph: Sequences, question: Sequences) -> Tensor:
        """Units float [B, T, width] and [B, J, width] -> logits float [B, 2, T], -inf for padding.

        An empty paragraph or question counts as one zero unit.
        """
        lengths, real = paragraph.lengths, paragraph.real
        p, q = (self.dropout(self.encode(text).transpose(0, 1)) for text in (paragraph, question))
        scores = self.flow(p, q).masked_fill(~question.real[:, None], float("-inf"))  # [B, T, J]
        asked = scores.softmax(2) @ q
        heard = scores.amax(2).masked_fill(~real, float("-inf")).softmax(1)[:, None] @ p  # [B, 1, width]
        read = self.merge(torch.cat([p, asked, p * asked, asked * heard], -1)).relu()
        states = self.dropout(self.again(Sequences(self.dropout(read), lengths)).transpose(0, 1))
        read = self.dropout(read + self._self_attention(states, real))
        first = self.dropout(self.first(Sequences(read, lengths)).transpose(0, 1))
        last = self.dropout(self.last(Sequences(torch.cat([first, read], -1), lengths)).transpose(0, 1))
        logits = torch.stack(
            [score(x).squeeze(-1) for score, x in zip(self.score, (first, last), strict=True)], 1
        )
        return logits.masked_fill(~real[:, None], float("-inf"))

    def _self_attention(self, states: Tensor, real: Tensor) -> Tensor:
        """Each word with the mean of the others that matter to it; a word does not attend to itself."""
        itself = torch.eye(states.shape[1], dtype=torch.bool, device=states.device)
        hidden = ~real[:, None] | itself
        weight = self.own(states, states).masked_fill(hidden, torch.finfo(states.dtype).min).softmax(2)
        found = weight.masked_fill(hidden, 0) @ states  # zero for the only word of a paragraph
        return self.residual(torch.cat([states, found, states * found], -1)).relu()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the first plus that of the last word, labels int64 [B, 2], in nats, mean over the batch.

        An answer that does not stand wholly in the (cut) paragraph adds nothing.
        """
        T = outputs.shape[2]
        inside = ((labels >= 0) & (labels < T)).all(1)
        padding = outputs.gather(2, labels.clamp(0, T - 1)[..., None]).isneginf()
        inside &= ~padding.flatten(1).any(1)
        labels = labels.masked_fill(~inside[:, None], IGNORED)
        summed = nn.functional.cross_entropy(
            outputs.reshape(-1, T), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
        )
        return summed / len(labels)

    def predict(self, outputs: Tensor) -> Tensor:
        """int64 [B, 2]: first and last word of the best span of at most LONGEST words."""
        return best_spans(outputs, LONGEST)


def best_spans(logits: Tensor, longest: int) -> Tensor:
    """Logits [B, 2, T] of first and last words -> int64 [B, 2]: those of the best span of at most `longest` words."""
    T = logits.shape[2]
    scores = logits[:, 0, :, None] + logits[:, 1, None]
    allowed = torch.ones(T, T, dtype=torch.bool, device=logits.device).triu().tril(longest - 1)
    best = scores.masked_fill(~allowed, float("-inf")).flatten(1).argmax(1)
    return torch.stack([best // T, best % T], 1)


class Trilinear(nn.Module):
    """a_i · u + b_j · v + (a_i ⊙ w) · b_j for every i and j: [B, S, D], [B, T, D] -> [B, S, T]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Linear(width, 1)
        self.b = nn.Linear(width, 1, bias=False)
        self.product = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.a(a) + self.b(b).transpose(1, 2) + (a * self.product) @ b.transpose(1, 2)
