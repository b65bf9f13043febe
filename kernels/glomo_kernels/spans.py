"""Which keys a query row may see, as one contiguous range per row.

Lengths, packed documents, the causal order and subsets of query rows all come down to `spans` [B, Tq, 2] int64:
row t of sample b sees the keys begin <= j < end, and none when begin == end (padding). Backends know no other
mask.
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
    segments: Tensor | None = None,
) -> Tensor:
    """spans [B, Tq, 2] int64 from lengths [B], the direction rule, positions [B, Tq] (None: 0..T-1), segments."""
    everywhere = positions is None and lengths is None  # no row is padding
    if positions is None:
        positions = torch.arange(columns, device=device)[None]
    else:  # on a device nobody looks at the values before: a row of no unit is padding, behind the last unit
        positions = torch.where(positions < 0, columns, positions)
    real_end = torch.full_like(positions, columns)
    if lengths is not None:
        # Nobody looks at these either; kernels do not look behind the last column.
        real_end = lengths.clamp(max=columns)[:, None].expand(batch, positions.shape[1])
    end = positions if causal else real_end
    begin = torch.zeros_like(end)
    if segments is not None:
        each = positions.clamp(max=columns - 1).expand(batch, positions.shape[1])
        first, behind = documents(segments)
        begin, end = first.gather(1, each), torch.minimum(end, behind.gather(1, each))
    spans = torch.stack([begin, end], dim=-1)
    if not everywhere:
        spans = spans * (positions < real_end)[..., None]  # 0, 0 for padding
    return spans.expand(batch, *spans.shape[1:]).contiguous()


def documents(segments: Tensor) -> tuple[Tensor, Tensor]:
    """For each unit the first unit of its document and the first behind it, int64 [B, T] each."""
    columns = segments.shape[1]
    unit = torch.arange(columns, device=segments.device).expand_as(segments)
    changes = torch.ones_like(segments, dtype=torch.bool)
    changes[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(changes, unit, 0).cummax(1).values
    following = torch.cat(
        [torch.where(changes, unit, columns)[:, 1:], unit.new_full((unit.shape[0], 1), columns)], 1
    )
    return first, following.flip(1).cummin(1).values.flip(1)


def outside(spans: Tensor, columns: int) -> Tensor:
    """Boolean [B, 1, Tq, T], True where key j is not visible from the row."""
    column = torch.arange(columns, device=spans.device)
    begin, end = spans[:, None, :, :1], spans[:, None, :, 1:]
    return (column < begin) | (column >= end)
