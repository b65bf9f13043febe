"""affinity_mix in plain PyTorch: the formula, tile by tile, and its backward written out.

Scores are computed again in the backward pass, so that nothing of size Tq x T is kept between the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels import scores
from glomo_kernels.scores import EPSILON, compute_dtype, tiles
from glomo_kernels.spans import outside


def why_not(*arguments: object) -> str | None:
    return None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    stats: bool,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The mixed values, and per row the sum of a (softmax: the logsumexp); nothing is kept."""
    batch, heads, rows, _ = q.shape
    columns, dtype = k.shape[2], compute_dtype(q)
    mixed = q.new_empty(batch, heads, rows, v.shape[3])
    norm = q.new_empty(batch, heads, rows, dtype=dtype)
    counted = norm.shape if stats else (0,)
    edges = q.new_empty(counted, dtype=torch.int32)
    entropy = q.new_empty(counted, dtype=dtype)
    live = q.new_full(scores.live_shape(q, k), 0 if stats else 1, dtype=torch.uint8)

    for b, h, r in tiles(batch, heads, rows, columns):
        hidden = outside(spans[b, r], columns)
        q_tile, k_tile, v_tile = q[b, h, r].to(dtype), k[b, h].to(dtype), v[b, h].to(dtype)
        if kind == "softmax":
            weight, norm[b, h, r] = scores.softmax(q_tile, k_tile, hidden)
            mixed[b, h, r] = weight @ v_tile
        else:
            theta_tile = None if theta is None else theta[b, h, r].to(dtype)
            count = None if topk is None else topk[b]
            weight = scores.roots(q_tile, k_tile, theta_tile, hidden, count, kind).square_()
            total = weight.sum(-1)
            norm[b, h, r] = total
            mixed[b, h, r] = (weight @ v_tile).div_((total + EPSILON)[..., None])
        if stats:
            edges[b, h, r] = (weight > 0).sum(-1)
            scores.mark_live(live[b, h], r, weight)
            total = weight.sum(-1, keepdim=True)
            share = weight.div_(total.masked_fill_(total == 0, 1))
            entropy[b, h, r] = torch.special.entr(share).sum(-1)
    kept = q.new_zeros(scores.kept_size(q, k, keep), dtype=dtype)
    return mixed, norm, edges, entropy, live, kept


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    mixed: Tensor,
    norm: Tensor,
    live: Tensor,
    kept: Tensor,
    kind: str,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, theta (empty without theta).

    With l_i the row's normaliser and D_i = sum_j (a_ij / l_i) dO_i . v_j:
        dv_j  = sum_i (a_ij / l_i) dO_i          dA_ij = (dO_i . v_j - D_i) / l_i
        dS_ij = 2 r_ij dA_ij                     (softmax: p_ij (dO_i . v_j - D_i) / sqrt(Dg))
        dq_i  = sum_j dS_ij k_j    dk_j = sum_i dS_ij q_i    dtheta_i = -sum_j dS_ij

    D_i equals dO_i . O_i, which needs no pass over the weights but the rounded output: in a row that one edge
    rules, dO_i . v_j - D_i cancels, and only the sum over the same products cancels exactly.
    """
    batch, heads, rows, width = q.shape
    columns, dtype = k.shape[2], compute_dtype(q)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk = torch.zeros(k.shape, dtype=dtype, device=k.device)
    dv = torch.zeros(v.shape, dtype=dtype, device=v.device)
    dtheta = q.new_empty(0) if theta is None else theta.new_empty(theta.shape)

    for b, h, r in tiles(batch, heads, rows, columns):
        hidden = outside(spans[b, r], columns)
        q_tile, k_tile, v_tile = q[b, h, r].to(dtype), k[b, h].to(dtype), v[b, h].to(dtype)
        grad_tile = grad[b, h, r].to(dtype)
        if kind == "softmax":
            weight, _ = scores.softmax(q_tile, k_tile, hidden)
            slope, share = weight * scores.softmax_scale(width), weight
        else:
            theta_tile = None if theta is None else theta[b, h, r].to(dtype)
            count = None if topk is None else topk[b]
            slope = scores.roots(q_tile, k_tile, theta_tile, hidden, count, kind)
            inverse = (norm[b, h, r][..., None] + EPSILON).reciprocal()
            share = slope.square().mul_(inverse)
            slope.mul_(2 * inverse)
        dv[b, h] += share.transpose(-1, -2) @ grad_tile
        d_scores = grad_tile @ v_tile.transpose(-1, -2)
        mean = share.mul_(d_scores).sum(-1, keepdim=True)
        d_scores.sub_(mean).mul_(slope)
        dq[b, h, r] = d_scores @ k_tile
        dk[b, h] += d_scores.transpose(-1, -2) @ q_tile
        if theta is not None:
            dtheta[b, h, r] = d_scores.sum(-1).neg_()
    return dq, dk.to(k.dtype), dv.to(v.dtype), dtheta
