"""decoder_loss in plain PyTorch, chunk by chunk over the targets."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels.scores import compute_dtype

# Elements of one chunk of logits, and the rows below which the matrix products become too thin.
CHUNK_ELEMENTS = 1 << 20
CHUNK_ROWS = 128


def why_not(*arguments: object) -> str | None:
    return None


def forward(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, d loss / d hidden, d loss / d weight); the last two empty unless `grads`.

    With e = exp(logits - max) and s its row sum, d loss / d logits = (e - s * onehot(target)) / s, 0 for ignored
    targets. The division is left to the narrow side of the products: no pass over the logits is spent on it.
    """
    dtype = compute_dtype(hidden)
    rows = max(CHUNK_ROWS, CHUNK_ELEMENTS // weight.shape[0])
    loss = torch.zeros((), dtype=dtype, device=hidden.device)
    dhidden = hidden.new_empty(hidden.shape if grads else (0,))
    dweight = torch.zeros(weight.shape if grads else (0,), dtype=dtype, device=weight.device)
    for start in range(0, hidden.shape[0], rows):
        chunk = hidden[start : start + rows]
        wanted = target[start : start + rows, None]
        real = wanted != ignore_index
        wanted = torch.where(real, wanted, 0)

        logits = (chunk @ weight.t()).to(dtype)
        best = logits.amax(-1, keepdim=True)
        likelihood = logits.gather(1, wanted) - best
        exponential = logits.sub_(best).exp_()
        total = exponential.sum(-1, keepdim=True)
        loss += torch.where(real, total.log() - likelihood, 0).sum()
        if grads:
            slope = exponential.scatter_add_(1, wanted, -total).to(hidden.dtype)
            scale = real / total
            dhidden[start : start + rows] = (slope @ weight) * scale
            dweight += slope.t() @ (chunk * scale).to(hidden.dtype)
    return loss, dhidden, dweight.to(weight.dtype)


def backward(grad: Tensor, dhidden: Tensor, dweight: Tensor) -> tuple[Tensor, Tensor]:
    return (dhidden * grad).to(dhidden.dtype), (dweight * grad).to(dweight.dtype)
