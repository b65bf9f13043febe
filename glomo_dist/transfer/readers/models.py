"""The task model around the fused features, and the small readers: recurrent for words, convolutions for pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from glomo_dist.model.glomo import reversal
from glomo_dist.transfer.readers.head import Fusion, GraphMixture, Graphs
from glomo_dist.transfer.readers.kinds import Cell

Mix = Literal["none", "window", "graphs"]


class Sequences(NamedTuple):
    """Padded sequences: units [N, T, width], lengths int64 [N]; graphs where they are still to be mixed in."""

    units: Tensor
    lengths: Tensor
    graphs: Graphs | None = None

    @property
    def real(self) -> Tensor:
        """bool [N, T]: which units are no padding; the first unit of an empty sequence counts as real."""
        return (
            torch.arange(self.units.shape[1], device=self.units.device) < self.lengths.clamp(min=1)[:, None]
        )


@dataclass(frozen=True)
class ReaderSizes:
    """What a reader is made for: width of the fused features, hidden width, number of classes, dropout share,
    cell of its layers over sequences (see `sequence_layer`), height and width of images, and how many of the fused
    features, at the front, are the unit's own (None: all)."""

    width: int
    hidden: int
    classes: int
    dropout: float
    cell: Cell = "gru"
    shape: tuple[int, int] | None = None
    own: int | None = None


class Reader(nn.Module):
    """From the fused features of a batch, one argument per column of the task, to class logits [B, classes].

    A reader whose outputs are something else has its own `loss` and `predict`.
    """

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch: the cross-entropy of logits [B, classes] with labels int64 [B], in nats."""
        return nn.functional.cross_entropy(outputs, labels)

    def predict(self, outputs: Tensor) -> Tensor:
        """int64 [B]: the class with the largest logit."""
        return outputs.argmax(-1)


class TaskModel(nn.Module):
    """Per column: features H [N, T, D] -> mixture -> fusion. Then the reader over all columns -> outputs.

    mix: "none" puts zeros in the place of M H, "window" equal weights on the `window` nearest units (None: on all,
    the uniform graph), "graphs" the given graphs. All have the same parameters and draw the same random numbers.
    """

    def __init__(
        self,
        mix: Mix,
        mixture: GraphMixture,
        fusion: Fusion,
        reader: Reader,
        dropout: float,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.mix = mix
        self.window = window
        self.mixture = mixture
        self.fusion = fusion
        self.dropout = nn.Dropout(dropout)
        self.reader = reader

    def forward(self, columns: dict[str, Sequences]) -> Tensor:
        return self.reader(**{name: self._fused(sequences) for name, sequences in columns.items()})

    def _fused(self, sequences: Sequences) -> Sequences:
        features, lengths, graphs = sequences
        if self.mix == "graphs":
            if graphs is None:
                raise ValueError("TaskModel: this arm needs graphs, got None.")
            mixed = self.mixture(features, graphs)
        elif self.mix == "window":
            mixed = self.mixture.window(features, lengths, self.window)
        else:
            N, T, D = features.shape
            mixed = features.new_zeros(N, T, 2 * self.mixture.mixtures * D)
        return Sequences(self.dropout(self.fusion(features, mixed)), lengths)


def sequence_layer(cell: Cell, width: int, hidden: int) -> nn.Module:
    """A layer over sequences of units [N, T, width] -> states [T, N, 2 · hidden].

    gru, lstm: `Recurrent`.  bag: `Separate`, a reader without an order of words: what it knows of a unit's context
    comes through the graph alone (with "none", it is a bag of words).
    """
    return Separate(width, hidden) if cell == "bag" else Recurrent(cell, width, hidden)


class Separate(nn.Module):
    """Each unit by itself, linear map and ReLU: sequences of units [N, T, width] -> states [T, N, 2 · hidden]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * hidden)

    def forward(self, sequences: Sequences) -> Tensor:
        return self.linear(sequences.units).relu().transpose(0, 1)


class Recurrent(nn.Module):
    """Bidirectional GRU or LSTM: sequences of units [N, T, width] -> states [T, N, 2 · hidden].

    The backward direction reads each sequence reversed within its length: the same numbers as packed sequences,
    in less than half the time on a CPU. States of padding are of no meaning.
    """

    def __init__(self, cell: Literal["gru", "lstm"], width: int, hidden: int) -> None:
        super().__init__()
        recurrent = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.forwards = recurrent(width, hidden)
        self.backwards = recurrent(width, hidden)

    def forward(self, sequences: Sequences) -> Tensor:
        units = sequences.units
        N, T, _ = units.shape
        lengths = sequences.lengths.clamp(min=1)
        at, sample = torch.arange(T, device=units.device), torch.arange(N, device=units.device)[:, None]
        mirrored = reversal(lengths, T)
        # The networks read [T, N, width] without a copy; where row (n, t) goes, straight and mirrored:
        straight_to, mirrored_to = (at * N + sample).flatten(), (mirrored * N + sample).flatten()
        straight_from, mirrored_from = ((t + sample * T).t().flatten() for t in (at.expand(N, T), mirrored))
        rows = units.reshape(N * T, -1)
        ahead = self.forwards(_Permuted.apply(rows, straight_from, straight_to).view(T, N, -1))[0]
        back = self.backwards(_Permuted.apply(rows, mirrored_from, mirrored_to).view(T, N, -1))[0]
        unmirrored = (mirrored * N + sample).t().flatten()
        back = _Permuted.apply(back.reshape(T * N, -1), unmirrored, unmirrored).view(T, N, -1)
        return torch.cat([ahead, back], -1)


class AttentivePool(nn.Module):
    """Mean of the states [T, N, D] of each sequence, weighted by how much each matters in itself -> [N, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.attend = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        score = self.score(torch.tanh(self.attend(states))).squeeze(-1)
        share = score.masked_fill(~real.t(), float("-inf")).softmax(0)
        return (share[..., None] * states).sum(0)


class TextReader(Reader):
    """Bidirectional GRU or LSTM (or a bag of words), self-attention pooling, linear classifier."""

    def __init__(self, sizes: ReaderSizes) -> None:
        super().__init__()
        self.states = sequence_layer(sizes.cell, sizes.width, sizes.hidden)
        self.pool = AttentivePool(2 * sizes.hidden, sizes.hidden)
        self.dropout = nn.Dropout(sizes.dropout)
        self.classify = nn.Linear(2 * sizes.hidden, sizes.classes)

    def forward(self, text: Sequences) -> Tensor:
        """-> logits [B, classes]; an empty text counts as one zero unit."""
        return self.classify(self.dropout(self.pool(self.states(text), text.real)))


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


class PixelReader(Reader):
    """Three 3 x 3 convolutions over the planes [pixel ; M pixel], mean pooling to 2 x 2, classifier."""

    def __init__(self, sizes: ReaderSizes) -> None:
        super().__init__()
        self.shape = sizes.shape
        self.convolutions = nn.Sequential(
            *_convolution(sizes.width, sizes.hidden),
            *_convolution(sizes.hidden, sizes.hidden),
            nn.MaxPool2d(2, ceil_mode=True),
            *_convolution(sizes.hidden, sizes.hidden),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(sizes.dropout)
        self.classify = nn.Linear(4 * sizes.hidden, sizes.classes)

    def forward(self, image: Sequences) -> Tensor:
        """Pixels in raster order -> logits [B, classes]; all images have one size."""
        return self.classify(self.dropout(self.convolutions(planes(image, self.shape))))


def planes(image: Sequences, shape: tuple[int, int] | None) -> Tensor:
    """Pixels [B, H·W, width] in raster order -> [B, width, H, W]."""
    if shape is None:
        raise ValueError("a reader of images needs their height and width, got none.")
    return image.units.transpose(1, 2).reshape(len(image.units), -1, *shape)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
