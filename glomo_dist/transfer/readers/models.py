"""The task model around the fused features, and the small readers: recurrent for words, convolutions for pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from glomo_dist.transfer.readers.head import Fusion, GraphMixture
from glomo_dist.transfer.readers.kinds import Cell
from glomo_dist.transfer.readers.sequences import AttentivePool, Sequences, sequence_layer

Mix = Literal["none", "window", "graphs"]


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
