"""Scores of the affinity ops: constants and sizes that all backends share, and for the reference the formula itself.

For every kind but softmax the unnormalised weight is a square, a_ij = r_ij^2, with the root
    relu    r = max(0, q_i . k_j - theta_i)
    square  r = q_i . k_j
    topk    r = q_i . k_j where (q_i . k_j)^2 is among the k largest of the row, else 0
and r = 0 outside of the row's span, so that one backward formula, dS = 2 r dA, serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# G_ij = a_ij / (sum_j a_ij + EPSILON).
EPSILON = 1e-16

# Elements of one tile of scores. Measured on CPU: tiles that stay in the cache beat larger and smaller ones.
TILE_ELEMENTS = 1 << 19

# Side of the tiles of scores that are known to be without a positive weight, or not.
LIVE = 64

Tile = tuple[slice, slice, slice]


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32: half precision underflows when squared."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def tiles(batch: int, heads: int, rows: int, columns: int) -> Iterator[Tile]:
    """Slices of (sample, head, row), in the order of the flattened rows, about TILE_ELEMENTS scores each."""
    fit = max(1, TILE_ELEMENTS // max(1, columns))  # rows of scores in one tile
    if heads * rows <= fit:
        step = max(1, fit // max(1, heads * rows))
        for b in range(0, batch, step):
            yield slice(b, min(b + step, batch)), slice(0, heads), slice(0, rows)
        return
    head_step, row_step = max(1, fit // rows), min(fit, rows)
    for b in range(batch):
        for h in range(0, heads, head_step):
            for r in range(0, rows, row_step):
                yield slice(b, b + 1), slice(h, min(h + head_step, heads)), slice(r, min(r + row_step, rows))


def live_shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    """[B, H, ceil(Tq / LIVE), ceil(T / LIVE)]"""
    batch, heads, rows, _ = q.shape
    return batch, heads, (rows + LIVE - 1) // LIVE, (k.shape[2] + LIVE - 1) // LIVE


# What is kept for the backward pass at most: nothing, which scores have an edge, or their roots.
KEEP = ("nothing", "edges", "roots")


def kept_size(q: Tensor, k: Tensor, keep: str) -> int:
    """Elements of compute_dtype(q): per head and LIVE rows those of all roots, or a bit for each, and a flag, 0 where
    nothing is kept."""
    if keep == "nothing":
        return 0
    batch, heads, row_tiles, _ = live_shape(q, k)
    of_unit = LIVE if keep == "roots" else LIVE // 8 // compute_dtype(q).itemsize
    return batch * heads * row_tiles * (of_unit * k.shape[2] + 1)


def mark_live(live: Tensor, rows: slice, weight: Tensor) -> None:
    """Set live [B, H, .., ..] to 1 for the tiles in which weight [B, H, R, T], of query rows `rows`, is positive."""
    padded = torch.nn.functional.pad(weight > 0, (0, -weight.shape[-1] % LIVE))
    positive = padded.view(*padded.shape[:-1], padded.shape[-1] // LIVE, LIVE).any(-1)
    for tile in range(rows.start // LIVE, (rows.stop + LIVE - 1) // LIVE):
        first = max(tile * LIVE - rows.start, 0)
        live[:, :, tile] |= positive[:, :, first : (tile + 1) * LIVE - rows.start].any(2)


def largest(values: Tensor, count: Tensor | int) -> Tensor:
    """Boolean mask of the `count` largest of each row of values [B, H, R, T]; ties go to the lowest column. A NaN is
    in it, too, so that its row does not pass for one without an edge.

    count  int, or int64 [B]; at least 1
    """
    columns = values.shape[-1]
    if values.numel() == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if isinstance(count, int):
        count = torch.full((values.shape[0],), count, device=values.device)
    count = count.clamp(1, columns)[:, None, None, None].expand(*values.shape[:-1], 1)
    best = values.topk(int(count.max()), dim=-1).values
    smallest = best.gather(-1, count - 1)
    above, equal = values > smallest, values == smallest
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room)) | values.isnan()


def roots(
    q: Tensor, k: Tensor, theta: Tensor | None, outside: Tensor, topk: Tensor | None, kind: str
) -> Tensor:
    """r [B, H, R, T] of the formula above, for every kind but softmax; inputs in the compute dtype."""
    root = q @ k.transpose(-1, -2)
    if theta is not None:
        root.sub_(theta[..., None])
    if kind == "relu":
        root.relu_()
    root.masked_fill_(outside, 0)
    if topk is not None:
        root.masked_fill_(~largest(root.square(), topk), 0)
    return root


def softmax_scale(width: int) -> float:
    """1 / sqrt(Dg). Without width all scores are 0."""
    return width**-0.5 if width else 1.0


def softmax(q: Tensor, k: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """(weights [B, H, R, T], logsumexp [B, H, R]) of q_i . k_j / sqrt(Dg); (0, -inf) for an empty span."""
    # not q * scale: whole numbers then are none any more, and equal scores would be rounded apart
    scores = (q @ k.transpose(-1, -2)).mul_(softmax_scale(q.shape[-1]))
    scores.masked_fill_(outside, -torch.inf)
    # not exp(score - logsumexp): that rounds a number as large as the scores
    if not scores.shape[-1]:
        return scores, scores.new_full(scores.shape[:-1], -torch.inf)
    peak = scores.amax(-1, keepdim=True)
    weights = scores.sub_(peak.masked_fill(peak == -torch.inf, 0)).exp_()
    total = weights.sum(-1, keepdim=True)
    norm = (peak + total.log()).squeeze(-1)
    return weights.div_(total.masked_fill(total == 0, 1)), norm
