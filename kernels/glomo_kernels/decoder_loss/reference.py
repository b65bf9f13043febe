"""decoder_loss in plain PyTorch: rows of `hidden` in chunks, their logits in blocks of words that fit the cache."""

from __future__ import annotations

from collections.abc import Iterable

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
    """(summed loss, d loss / d hidden, d loss / d weight) in the compute dtype; the last two empty unless `grads`.

    For the logits z of block b: e = exp(z - m_b) with m_b their largest, and p = softmax(z) = e f_b with
    f_b = exp(m_b - max_b m_b) / total. d loss / d z = p - onehot(target).

    Where the target is nearly certain, 1 - p(target) and the loss are small differences of large numbers, so they
    come from the sum of the other words instead, and the target's logit from the same, rounded, logits as theirs.
    p - onehot is rounded as a whole for the weight's gradient; for that of hidden the target's part is one row of
    the weight, which needs no rounding.
    """
    dtype = compute_dtype(hidden)
    words = weight.shape[0]
    rows, block = _sizes(hidden.device, words)
    loss, dhidden, dweight = results(hidden, weight, grads)
    lowest = torch.finfo(dtype).min  # subtracted in the place of -inf, from which nothing can be
    memory = torch.empty(
        min(rows, hidden.shape[0]) * (words if grads else min(block, words)),
        dtype=dtype,
        device=hidden.device,
    )

    for start in range(0, hidden.shape[0], rows):
        # side by side: PyTorch's product of bfloat16 by AMX multiplies what lies between rows of an odd width, too
        chunk = hidden[start : start + rows].contiguous()
        wanted = target[start : start + rows, None]
        real = wanted != ignore_index
        wanted = torch.where(real, wanted, 0)
        # NaN of a target out of range, where none looks
        likelihood = torch.full(wanted.shape, torch.nan, dtype=dtype, device=hidden.device)
        blocks, peaks, sums = [], [], []
        for first in range(0, words, block):
            part = weight[first : first + block]
            place = memory[first * len(chunk) if grads else 0 :][: len(chunk) * len(part)]
            logits = place.view(len(chunk), len(part))
            if dtype == hidden.dtype:
                torch.mm(chunk, part.t(), out=logits)
            else:
                logits.copy_(_product(chunk, part.t(), dtype))
            at = (wanted - first).clamp(0, len(part) - 1)
            here = at == wanted - first
            likelihood = torch.where(here, logits.gather(1, at), likelihood)
            peak = logits.amax(-1, keepdim=True)
            exponential = logits.sub_(peak.clamp(min=lowest)).exp_()
            _put(exponential, at, exponential.gather(1, at).masked_fill_(here, 0))
            blocks.append((slice(first, first + len(part)), exponential, at, here))
            peaks.append(peak)
            sums.append(exponential.sum(-1, keepdim=True))
        chunk_loss, slope, factor = join(real, likelihood, torch.cat(peaks, 1), torch.cat(sums, 1))
        loss += chunk_loss
        if grads:
            shares = (
                (words_of, exponential.mul_(factor[:, index : index + 1]).to(hidden.dtype), at, here)
                for index, (words_of, exponential, at, here) in enumerate(blocks)
            )
            dhidden[start : start + rows] = add_gradients(chunk, weight, wanted, slope, shares, dweight)
    return loss, dhidden, dweight


def results(hidden: Tensor, weight: Tensor, grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` returns, before the first chunk: the loss and the weight's gradient are added up from zero."""
    dtype = compute_dtype(hidden)
    return (
        hidden.new_zeros((), dtype=dtype),
        hidden.new_empty(hidden.shape if grads else (0,), dtype=dtype),
        weight.new_zeros(weight.shape if grads else (0,), dtype=dtype),
    )


def join(real: Tensor, likelihood: Tensor, peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, p - 1 of the targets, f_b / total of `forward`), from the numbers of the blocks.

    real, likelihood [rows, 1]: whether there is a target, its logit; peaks (overwritten), sums [rows, blocks]
    """
    peak = peaks.amax(-1, keepdim=True)
    factor = peaks.sub_(peak).exp_()
    others = (factor * sums).sum(-1, keepdim=True)
    own = (likelihood - peak).exp_()
    loss = losses(real, others, own, peak - likelihood).sum()
    return loss, slopes(real, others, own), factor.mul_(real / (others + own))


def losses(real: Tensor, others: Tensor, own: Tensor, gap: Tensor) -> Tensor:
    """Of each row. others: sum of exp(z - largest) over all words but the target; own: the target's.

    gap: the largest minus the target's z.  own or one of the others is exactly 1: no logarithm is below 0.
    """
    return torch.where(real, (others + (own - 1)).log1p_() + gap, 0)


def slopes(real: Tensor, others: Tensor, own: Tensor) -> Tensor:
    """p - 1 of the target, for each row; 0 where there is none."""
    return -others * (real / (others + own))


def add_gradients(
    chunk: Tensor,
    weight: Tensor,
    wanted: Tensor,
    slope: Tensor,
    blocks: Iterable[tuple[slice, Tensor, Tensor, Tensor]],
    dweight: Tensor,
) -> Tensor:
    """The gradient of a chunk of `hidden`; that of the weight is added to dweight.

    wanted, slope  [rows, 1], of the target
    blocks         (the words, their p with 0 for the target, the target's place or any, whether it is among them);
                   the p are overwritten
    """
    dchunk = weight[wanted[:, 0].clamp(0, len(weight) - 1)].to(dweight.dtype).mul_(slope)
    for words, dlogits, at, here in blocks:
        if dweight.dtype == chunk.dtype:
            dchunk.addmm_(dlogits, weight[words])
        else:
            dchunk += _product(dlogits, weight[words], dchunk.dtype)
        _put(dlogits, at, torch.where(here, slope.to(chunk.dtype), dlogits.gather(1, at)))
        if dweight.dtype == chunk.dtype:
            dweight[words].addmm_(dlogits.t(), chunk)
        else:
            dweight[words] += _product(dlogits.t(), chunk, dweight.dtype)
    return dchunk


def _put(x: Tensor, at: Tensor, values: Tensor) -> None:
    """x[i, at[i, 0]] = values[i, 0]. Not by scatter_: under deterministic algorithms it makes the host wait for a
    GPU, so that no CUDA graph can take it. By places in one long row: there index_put_ copies a matrix with gaps."""
    step = x.stride(0)
    places = torch.arange(len(x), device=x.device) * step + at[:, 0]
    x.as_strided((len(x) * step,), (1,)).index_put_((places,), values[:, 0])


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b of half precision in `dtype`, so that in float16 a sum over many rows has its range."""
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=dtype)
    if a.dtype == torch.float16:  # PyTorch's on a CPU rounds to float16, and takes 16 times as long
        return a.to(dtype) @ b.to(dtype)
    return (a @ b).to(dtype)


def backward(grad: Tensor, dhidden: Tensor, dweight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients that `forward` gave, times that of the loss, in the dtype of `hidden`."""
    return (dhidden * grad).to(dtype), (dweight * grad).to(dtype)
