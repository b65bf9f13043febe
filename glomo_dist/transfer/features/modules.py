"""From the units of a column to their features H: tables of word vectors, an encoder's states, pixels, an RNN."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from glomo_dist.transfer.features.states import StateColumn
from glomo_dist.transfer.readers.kinds import Cell
from glomo_dist.transfer.readers.sequences import Sequences, sequence_layer

PAD, UNKNOWN = 0, 1


class ColumnBatch(NamedTuple):
    """numbers int64 [N] of the column's values, their units [N, T] or [N, T, channels] padded with 0, lengths [N].

    N is k times the number of examples, the values of one example next to each other; T ≥ 1.
    """

    numbers: np.ndarray[Any, Any]
    units: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> ColumnBatch:
        """The same with its tensors on another device."""
        return ColumnBatch(self.numbers, self.units.to(device), self.lengths.to(device))


class Features(nn.Module):
    """forward(column, batch) -> [N, T, D]; column: its name with the split, as in a graph store ("train.text")."""


class WordFeatures(Features):
    """Word ids [N, T] -> vectors [N, T, D], a frozen table or a learned one; padding is zero."""

    def __init__(self, vocabulary: int, width: int, frozen: np.ndarray[Any, Any] | None) -> None:
        super().__init__()
        if frozen is not None:
            self.register_buffer("table", torch.from_numpy(frozen), persistent=False)
        else:
            self.table = nn.Parameter(torch.randn(vocabulary, width) * width**-0.5)

    def forward(self, column: str, batch: ColumnBatch) -> Tensor:
        found = nn.functional.embedding(batch.units, self.table)
        return found if not self.table.requires_grad else found * (batch.units != PAD)[..., None]


class StateFeatures(Features):
    """The states of an encoder, from disk; padding is zero."""

    def __init__(self, columns: dict[str, StateColumn]) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, column: str, batch: ColumnBatch) -> Tensor:
        states = self.columns[column].batch(batch.numbers, batch.lengths, batch.units.shape[1])
        return states.to(batch.units.device)


class PixelFeatures(Features):
    """Pixels uint8 [N, H·W, channels] -> [N, H·W, D]: intensities in [0, 1], position (y, x) in [-1, 1]."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.positions: Tensor
        self.register_buffer("positions", torch.from_numpy(pixel_positions(*shape)), persistent=False)

    def forward(self, column: str, batch: ColumnBatch) -> Tensor:
        return torch.cat([batch.units.float() / 255, self.positions.expand(len(batch.units), -1, -1)], -1)


class RecurrentFeatures(Features):
    """The states of a bidirectional recurrent layer over other features, trained with the task (the paper's TRNN)."""

    def __init__(self, below: Features, cell: Cell, width: int, hidden: int) -> None:
        super().__init__()
        self.below = below
        self.recurrent = sequence_layer(cell, width, hidden)

    def forward(self, column: str, batch: ColumnBatch) -> Tensor:
        """-> [N, T, 2 · hidden], zero at padding."""
        sequences = Sequences(self.below(column, batch), batch.lengths)
        real = torch.arange(sequences.units.shape[1], device=batch.lengths.device) < batch.lengths[:, None]
        return self.recurrent(sequences).transpose(0, 1) * real[..., None]


def pixel_positions(height: int, width: int) -> np.ndarray[Any, Any]:
    """Coordinates (y, x) of each pixel in raster order, each in [-1, 1]: float32 [H·W, 2]."""
    y = np.linspace(-1, 1, height, dtype=np.float32)
    x = np.linspace(-1, 1, width, dtype=np.float32)
    return np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(height * width, 2)
