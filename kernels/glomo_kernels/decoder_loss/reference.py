"""decoder_loss in plain PyTorch: rows of `hidden` in chunks, their logits in blocks of words that fit the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels.scores import compute_dtype

# Rows and words of a block of logits on a CPU, measured at [1920, 512] x 100,000 words: fewer rows pass over the
# gradient of the weight more often, more words leave the cache between the product and the exponential.
CHUNK_ROWS = 384
BLOCK_WORDS = 2048
# Elements of one chunk of logits on other devices, where one large product is best.
CHUNK_ELEMENTS = 1 << 27


def why_not(*arguments: object) -> str | None:
    return None


def _sizes(device: torch.device, words: int) -> tuple[int, int]:
    """(rows of a chunk, words of a block)"""
    if device.type == "cpu":
        return CHUNK_ROWS, BLOCK_WORDS
    return max(CHUNK_ROWS, CHUNK_ELEMENTS // words), words


def forward(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, d loss / d hidden, d loss / d weight); the last two empty unless `grads`.

    For the logits z of block b: e = exp(z - m_b) with m_b their largest, and p = softmax(z) = e f_b with
    f_b = exp(m_b - max_b m_b) / total. d loss / d z = p - onehot(target). Neither f_b nor the one-hot needs a pass
    over the logits: f_b multiplies the narrow side of the products, the one-hot is a row of weight and of hidden.
    """
    dtype = compute_dtype(hidden)
    words = weight.shape[0]
    rows, block = _sizes(hidden.device, words)
    loss = torch.zeros((), dtype=dtype, device=hidden.device)
    dhidden = hidden.new_empty(hidden.shape if grads else (0,))
    dweight = torch.zeros(weight.shape if grads else (0,), dtype=dtype, device=weight.device)
    memory = torch.empty(
        min(rows, hidden.shape[0]) * (words if grads else min(block, words)),
        dtype=dtype,
        device=hidden.device,
    )

    for start in range(0, hidden.shape[0], rows):
        chunk = hidden[start : start + rows]
        wanted = target[start : start + rows]
        real = wanted != ignore_index
        wanted = torch.where(real, wanted, 0)
        exponentials, peaks, sums = [], [], []
        for first in range(0, words, block):
            part = weight[first : first + block]
            place = memory[first * len(chunk) if grads else 0 :][: len(chunk) * len(part)]
            logits = place.view(len(chunk), len(part))
            if dtype == hidden.dtype:
                torch.mm(chunk, part.t(), out=logits)
            else:
                logits.copy_(chunk @ part.t())
            peak = logits.amax(-1, keepdim=True)
            exponentials.append(logits.sub_(peak).exp_())
            peaks.append(peak)
            sums.append(exponentials[-1].sum(-1, keepdim=True))
        peak = torch.cat(peaks, 1)
        factor = (peak - peak.amax(-1, keepdim=True)).exp_()
        total = (factor * torch.cat(sums, 1)).sum(-1, keepdim=True)
        right = weight[wanted]
        likelihood = (chunk.to(dtype) * right.to(dtype)).sum(-1)
        normaliser = total.log().add_(peak.amax(-1, keepdim=True))[:, 0]
        loss += torch.where(real, normaliser - likelihood, 0).sum()
        if not grads:
            continue
        factor.mul_(real[:, None] / total)
        slope = right.to(dtype).mul_(real[:, None]).neg_()
        dweight.index_add_(0, wanted, (chunk * real[:, None]).to(dtype), alpha=-1)
        for index, exponential in enumerate(exponentials):
            words_of = slice(index * block, index * block + exponential.shape[1])
            share = factor[:, index : index + 1]
            exponential = exponential.to(hidden.dtype)
            slope.addcmul_((exponential @ weight[words_of]).to(dtype), share)
            scaled = (chunk * share).to(hidden.dtype)
            if dtype == hidden.dtype:
                dweight[words_of].addmm_(exponential.t(), scaled)
            else:
                dweight[words_of] += exponential.t() @ scaled
        dhidden[start : start + rows] = slope
    return loss, dhidden, dweight.to(weight.dtype)


def backward(grad: Tensor, dhidden: Tensor, dweight: Tensor) -> tuple[Tensor, Tensor]:
    return (dhidden * grad).to(dhidden.dtype), (dweight * grad).to(dweight.dtype)
