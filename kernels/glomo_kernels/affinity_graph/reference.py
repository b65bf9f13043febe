"""affinity_graph in plain PyTorch: dense tiles of scores, of which the positive ones are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels import scores
from glomo_kernels.scores import EPSILON, compute_dtype, largest, tiles
from glomo_kernels.spans import outside


def why_not(*arguments: object) -> str | None:
    return None


def forward(
    q: Tensor,
    k: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    keep: int,
    renormalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights [E], offsets int64 [B*H*T + 1], columns int32 [E]); keep = 0 keeps every edge."""
    batch, heads, units, _ = q.shape
    dtype = compute_dtype(q)
    counts = torch.zeros(batch, heads, units, dtype=torch.int64, device=q.device)
    columns = [q.new_empty(0, dtype=torch.int32)]
    weights = [q.new_empty(0, dtype=dtype)]
    for b, h, r in tiles(batch, heads, units, units):
        hidden = outside(spans[b, r], units)
        q_tile, k_tile = q[b, h, r].to(dtype), k[b, h].to(dtype)
        if kind == "softmax":
            weight, _ = scores.softmax(q_tile, k_tile, hidden)
            epsilon = 0.0
        else:
            theta_tile = None if theta is None else theta[b, h, r].to(dtype)
            count = None if topk is None else topk[b]
            weight = scores.roots(q_tile, k_tile, theta_tile, hidden, count, kind).square_()
            epsilon = EPSILON
        total = weight.sum(-1, keepdim=True)
        if keep:
            weight.masked_fill_(~largest(weight, keep), 0)
            if renormalise:
                total = weight.sum(-1, keepdim=True)
        edge = weight > 0
        counts[b, h, r] = edge.sum(-1)
        columns.append(edge.nonzero()[:, -1].to(torch.int32))
        weights.append(weight.div_(total + epsilon)[edge])
    offsets = torch.cat([counts.new_zeros(1), counts.flatten().cumsum(0)])
    return torch.cat(weights), offsets, torch.cat(columns)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    offsets: Tensor,
    columns: Tensor,
    weights: Tensor,
    kind: str,
    keep: int,
    renormalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and theta (empty without theta).

    With g the gradient of a weight (0 where there is no edge), D_i = sum_e g_e w_e and l_i the normaliser,
    dA_ij = (g_ij - D_i) / l_i and dS_ij = 2 r_ij dA_ij, over the kept edges if they were renormalised and
    over all of the row if not.
    """
    batch, heads, units, width = q.shape
    dtype = compute_dtype(q)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk = torch.zeros(k.shape, dtype=dtype, device=k.device)
    dtheta = q.new_empty(0) if theta is None else theta.new_empty(theta.shape)
    counts = offsets.diff().view(batch, heads, units)
    first = 0
    for b, h, r in tiles(batch, heads, units, units):
        tile_counts = counts[b, h, r].flatten()
        last = first + int(tile_counts.sum())
        row = torch.repeat_interleave(tile_counts)
        column = columns[first:last].long()
        grad_edge, weight_edge = grad[first:last].to(dtype), weights[first:last]
        first = last

        tile_shape = (*counts[b, h, r].shape, units)
        d_weight = q.new_zeros(len(tile_counts), units, dtype=dtype)
        d_weight[row, column] = grad_edge
        mean = q.new_zeros(len(tile_counts), dtype=dtype).index_add_(0, row, grad_edge * weight_edge)

        hidden = outside(spans[b, r], units).expand(tile_shape)
        if renormalise:
            kept = torch.zeros_like(d_weight, dtype=torch.bool)
            kept[row, column] = True
            hidden = ~kept.view(tile_shape)
        q_tile, k_tile = q[b, h, r].to(dtype), k[b, h].to(dtype)
        d_scores = d_weight.sub_(mean[:, None]).view(tile_shape)
        if kind == "softmax":
            weight, _ = scores.softmax(q_tile, k_tile, hidden)
            d_scores.mul_(weight).mul_(scores.softmax_scale(width))
        else:
            theta_tile = None if theta is None else theta[b, h, r].to(dtype)
            # Renormalised, the mask above already holds exactly the kept edges: no second choice among them.
            count = None if topk is None or renormalise else topk[b]
            root = scores.roots(q_tile, k_tile, theta_tile, hidden, count, kind)
            total = root.square().sum(-1, keepdim=True)
            d_scores.mul_(root).mul_(2 / (total + EPSILON))
        dq[b, h, r] = d_scores @ k_tile
        dk[b, h] += d_scores.transpose(-1, -2) @ q_tile
        if theta is not None:
            dtheta[b, h, r] = d_scores.sum(-1).neg_()
    return dq, dk.to(k.dtype), dtheta
