"""Small task models around the fused features: a recurrent reader for words, a convolution for pixels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from glomo_dist.transfer.head import Fusion, GraphMixture, Graphs

Mix = Literal["none", "uniform", "graphs"]


class TaskModel(nn.Module):
    """features H [B, T, D] -> mixture -> fusion -> reader -> class logits [B, classes].

    mix: "none" puts zeros in the place of M H, "uniform" the uniform graph, "graphs" the given graphs. All
    three have the same parameters and draw the same random numbers.
    """

    def __init__(
        self, mix: Mix, mixture: GraphMixture, fusion: Fusion, reader: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.mix = mix
        self.mixture = mixture
        self.fusion = fusion
        self.dropout = nn.Dropout(dropout)
        self.reader = reader

    def forward(self, features: Tensor, lengths: Tensor, graphs: Graphs | None) -> Tensor:
        if self.mix == "graphs":
            if graphs is None:
                raise ValueError("TaskModel: this arm needs graphs, got None.")
            mixed = self.mixture(features, graphs)
        elif self.mix == "uniform":
            mixed = self.mixture.uniform(features, lengths)
        else:
            B, T, D = features.shape
            mixed = features.new_zeros(B, T, 2 * self.mixture.mixtures * D)
        return self.reader(self.dropout(self.fusion(features, mixed)), lengths)


class TextReader(nn.Module):
    """Bidirectional GRU or LSTM, self-attention pooling, linear classifier.

    The backward direction reads each text reversed within its length: the same numbers as packed sequences,
    in less than half the time on a CPU.
    """

    def __init__(
        self, kind: Literal["gru", "lstm"], width: int, hidden: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        recurrent = nn.GRU if kind == "gru" else nn.LSTM
        self.forwards = recurrent(width, hidden)
        self.backwards = recurrent(width, hidden)
        self.attend = nn.Linear(2 * hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(2 * hidden, classes)

    def forward(self, units: Tensor, lengths: Tensor) -> Tensor:
        """units [B, T, width], lengths [B] -> logits [B, classes]; an empty text counts as one zero unit."""
        B, T, _ = units.shape
        lengths = lengths.clamp(min=1)
        at, sample = torch.arange(T, device=units.device), torch.arange(B, device=units.device)[:, None]
        mirrored = lengths[:, None] - 1 - at
        mirrored = torch.where(mirrored >= 0, mirrored, at)
        # The networks read [T, B, width] without a copy; where row (b, t) goes, straight and mirrored:
        straight_to, mirrored_to = (at * B + sample).flatten(), (mirrored * B + sample).flatten()
        straight_from, mirrored_from = ((t + sample * T).t().flatten() for t in (at.expand(B, T), mirrored))
        rows = units.reshape(B * T, -1)
        ahead = self.forwards(_Permuted.apply(rows, straight_from, straight_to).view(T, B, -1))[0]
        back = self.backwards(_Permuted.apply(rows, mirrored_from, mirrored_to).view(T, B, -1))[0]
        unmirrored = (mirrored * B + sample).t().flatten()
        back = _Permuted.apply(back.reshape(T * B, -1), unmirrored, unmirrored).view(T, B, -1)
        states = torch.cat([ahead, back], -1)
        score = self.score(torch.tanh(self.attend(states))).squeeze(-1)
        share = score.masked_fill((at >= lengths[:, None]).t(), float("-inf")).softmax(0)
        return self.classify(self.dropout((share[..., None] * states).sum(0)))


class _Permuted(torch.autograd.Function):
    """Rows of x [n, D] in another order. The gradient is a permutation too, where indexing would add rows up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class PixelReader(nn.Module):
    """Three 3 x 3 convolutions over the planes [pixel ; M pixel], mean pooling to 2 x 2, classifier."""

    def __init__(self, shape: tuple[int, int], width: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.convolutions = nn.Sequential(
            *_convolution(width, hidden),
            *_convolution(hidden, hidden),
            nn.MaxPool2d(2, ceil_mode=True),
            *_convolution(hidden, hidden),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(4 * hidden, classes)

    def forward(self, units: Tensor, lengths: Tensor) -> Tensor:
        """units [B, H·W, width] in raster order -> logits [B, classes]; all images have one size."""
        planes = units.transpose(1, 2).reshape(len(units), -1, *self.shape)
        return self.classify(self.dropout(self.convolutions(planes)))


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
