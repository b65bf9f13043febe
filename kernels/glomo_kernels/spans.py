"""Which keys a query row may see, as one contiguous range per row.

Lengths, the causal order and subsets of query rows all come down to `spans` [B, Tq, 2] int64: row t of
sample b sees the keys begin <= j < end, and none when begin == end (padding). Backends know no other mask.
"""

from __future__ import annotations

import torch
from torch import Tensor


def make_spans(
    batch: int,
    columns: int,
    device: torch.device,
    *,
    lengths: Tensor | None,
    causal: bool,
    positions: Tensor | None,
) -> Tensor:
    """spans [B, Tq, 2] int64 from lengths [B], the direction rule and positions [B, Tq] (None: 0..T-1)."""
    if positions is None:
        positions = torch.arange(columns, device=device).expand(batch, columns)
    if lengths is None:
        real_end = torch.full_like(positions, columns)
    else:
        real_end = lengths[:, None].expand_as(positions)
    end = positions if causal else real_end
    end = torch.where(positions < real_end, end, 0)
    return torch.stack([torch.zeros_like(end), end], dim=-1)


def outside(spans: Tensor, columns: int) -> Tensor:
    """Boolean [B, 1, Tq, T], True where key j is not visible from the row."""
    column = torch.arange(columns, device=spans.device)
    begin, end = spans[:, None, :, :1], spans[:, None, :, 1:]
    return (column < begin) | (column >= end)
