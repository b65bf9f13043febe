"""Padded sequences of units, and the layers over them: recurrent or each unit by itself, and a weighted mean."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from glomo_dist.model.glomo import reversal
from glomo_dist.transfer.readers import gru
from glomo_dist.transfer.readers.head import Graphs
from glomo_dist.transfer.readers.kinds import Cell


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
    in less than half the time on a CPU. There, GRUs go side by side (gru.py); a GPU has cuDNN's. States of padding
    are of no meaning.
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
        straight = _Permuted.apply(rows, straight_from, straight_to).view(T, N, -1)
        mirror = _Permuted.apply(rows, mirrored_from, mirrored_to).view(T, N, -1)
        if isinstance(self.forwards, nn.GRU) and units.device.type == "cpu":
            ahead, back = gru.side_by_side((self.forwards, self.backwards), torch.stack([straight, mirror]))
        else:
            ahead, back = self.forwards(straight)[0], self.backwards(mirror)[0]
        unmirrored = (mirrored * N + sample).t().flatten()
        back = _Permuted.apply(back.reshape(T * N, -1), unmirrored, unmirrored).view(T, N, -1)
        return torch.cat([ahead, back], -1)


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
