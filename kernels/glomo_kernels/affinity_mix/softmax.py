"""Kind "softmax" of affinity_mix through PyTorch's own attention: the comparison should not lose by slow code.

It has no backend of ours to choose: PyTorch picks its kernel by device, dtype and shape.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from glomo_kernels import autocast
from glomo_kernels.scores import softmax_scale
from glomo_kernels.spans import outside


def mix(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *, order: str | None) -> Tensor:
    """softmax(q_i . k_j / sqrt(Dg)) mixed over the span of row i; [B, H, Tq, Dv]. Rows with an empty span are 0.

    spans  int64 [B, Tq, 2]
    order  what is known of the spans that are not empty: "causal", span i is 0..i-1; "all", it is all keys; None,
           nothing, which takes a mask of Tq x T booleans for each sample
    """
    values, width = v.shape[3], q.shape[3]
    # where q is NaN and the keys are few, PyTorch's fused kernel gives 0 on a CPU
    spoiled = q.detach().mul(0).sum(-1, keepdim=True)
    wide = max(values, width)  # the fused kernels take equal widths only
    q, k, v = (F.pad(x, (0, wide - x.shape[3])) for x in (q, k, v))
    empty = (spans[..., 0] >= spans[..., 1])[:, None, :, None]
    mask = None
    if order == "causal":
        # j < i is j' <= i' for the rows from the second on and the keys up to the last but one
        q, k, v = q[:, :, 1:], k[:, :, :-1], v[:, :, :-1]
    elif order is None:
        # an empty row looks at everything here and is set to 0 below: no kernel has to divide 0 by 0
        mask = ~outside(spans, k.shape[2]) | empty
    with autocast.off(q.device):
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=order == "causal", scale=softmax_scale(width)
        )
    if order == "causal":
        mixed = F.pad(mixed, (0, 0, 1, 0))
    return (mixed[..., :values] + spoiled).masked_fill(empty, 0)
