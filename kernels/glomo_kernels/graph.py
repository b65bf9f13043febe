"""A batch of sparse graphs: compressed rows, as the ops produce and consume them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from glomo_kernels.registration import storable


@storable
class SparseGraph(NamedTuple):
    """B x H sparse graphs over T units; row i lists the units that unit i looks at.

    offsets  int64 [B*H*T + 1]  row r = (b*H + h)*T + i has the edges offsets[r] .. offsets[r+1]
    columns  int32 [E]          ascending within a row
    weights  [E]                float32 (float64 where the input was)
    shape    (B, H, T)          H is the number of heads, or of components (layers * heads)
    """

    offsets: Tensor
    columns: Tensor
    weights: Tensor
    shape: tuple[int, int, int]

    def rows(self) -> Tensor:
        """The flat row (b*H + h)*T + i of every edge, int64 [E]."""
        count = self.offsets.numel() - 1
        counts = self.offsets.diff()
        index = torch.arange(count, device=counts.device)
        return torch.repeat_interleave(index, counts, output_size=self.columns.numel())

    def dense(self) -> Tensor:
        """[B, H, T, T] with zeros where there is no edge (several of one column are added up); gradients flow to
        the weights."""
        b, h, t = self.shape
        flat = self.weights.new_zeros(b * h * t * t)
        return flat.index_add(0, self.rows() * t + self.columns, self.weights).view(b, h, t, t)

    def detach(self) -> SparseGraph:
        """The same graph as a constant, as graph_mix and graph_apply take it."""
        return self._replace(weights=self.weights.detach())

    def to(self, device: torch.device | str | int) -> SparseGraph:
        """The graph on a device; dtypes stay."""
        if isinstance(device, torch.dtype):
            raise TypeError(
                f"SparseGraph.to takes a device, got {device}: offsets and columns are whole numbers. For other "
                "weights use graph._replace(weights=graph.weights.to(dtype))."
            )
        return SparseGraph(
            self.offsets.to(device), self.columns.to(device), self.weights.to(device), self.shape
        )
