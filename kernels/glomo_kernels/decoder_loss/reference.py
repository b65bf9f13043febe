"""decoder_loss in plain PyTorch, chunk by chunk over the targets."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels.scores import compute_dtype

# Elements of one chunk of logits, and the rows below which the matrix products become too thin.
CHUNK_ELEMENTS = 1 << 21
CHUNK_ROWS = 128


def why_not(*arguments: object) -> str | None:
    return None


def forward(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, d loss / d hidden, d loss / d weight); the last two empty unless `grads`.

    With p the softmax of the logits, d loss / d logits = p - onehot(target), 0 for ignored targets.
    """
    dtype = compute_dtype(hidden)
    rows = max(CHUNK_ROWS, CHUNK_ELEMENTS // weight.shape[0])
    loss = torch.zeros((), dtype=dtype, device=hidden.device)
    dhidden = hidden.new_empty(hidden.shape if grads else (0,))
    dweight = torch.zeros(weight.shape if grads else (0,), dtype=dtype, device=weight.device)
    for start in range(0, hidden.shape[0], rows):
        chunk = hidden[start : start + rows]
        logits = (chunk @ weight.t()).to(dtype)
        wanted = target[start : start + rows]
        real = wanted != ignore_index
        wanted = torch.where(real, wanted, 0)[:, None]
        norm = logits.logsumexp(-1)
        loss += torch.where(real, norm - logits.gather(1, wanted)[:, 0], 0).sum()
        if grads:
            d_logits = logits.sub_(norm[:, None]).exp_()
            d_logits.scatter_add_(1, wanted, d_logits.new_full((), -1.0).expand(wanted.shape))
            d_logits.masked_fill_(~real[:, None], 0)
            d_logits = d_logits.to(hidden.dtype)
            dhidden[start : start + rows] = d_logits @ weight
            if dweight.dtype == d_logits.dtype:
                dweight.addmm_(d_logits.t(), chunk)
            else:
                dweight += d_logits.t() @ chunk
    return loss, dhidden, dweight.to(weight.dtype)


def backward(grad: Tensor, dhidden: Tensor, dweight: Tensor) -> tuple[Tensor, Tensor]:
    return (dhidden * grad).to(dhidden.dtype), (dweight * grad).to(dweight.dtype)
