"""decoder_loss on a GPU: products by PyTorch, and one Triton kernel that goes over the logits between them.

A chunk of logits, in the dtype of `hidden`, is written by a product, read and overwritten by its softmax, and read
by the two products of the gradients. In plain PyTorch it is float32 and passed over some ten times more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels import triton_device
from glomo_kernels.decoder_loss import reference
from glomo_kernels.decoder_loss.reference import backward as backward  # the backend's own

CHUNK_BYTES = 1 << 29  # of logits
# Rows of logits begin at multiples of so many elements. Where rows of an odd number of words lie side by side, the
# kernel and the products have to take their numbers one by one.
ALIGNMENT = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(hidden: Tensor | None = None, *others: object) -> str | None:
    if hidden is not None and hidden.dtype not in DTYPES:
        return f"{hidden.dtype} is not implemented in Triton (float32, bfloat16, float16 are)"
    return triton_device.why_not(hidden)


def forward(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As in reference.py."""
    words = weight.shape[0]
    step = -(-words // ALIGNMENT) * ALIGNMENT
    rows = max(1, CHUNK_BYTES // (step * hidden.element_size()))
    memory = hidden.new_empty(min(rows, len(hidden)), step)
    loss, dhidden, dweight = reference.results(hidden, weight, grads)
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        chunk, wanted = hidden[part], target[part, None]
        logits = torch.mm(chunk, weight.t(), out=memory[: len(chunk), :words])
        peak, others, likelihood = _softmax(logits, wanted, ignore_index, grads)
        real = wanted != ignore_index
        own = (likelihood - peak).exp_()
        loss += reference.losses(real, others, own, peak - likelihood).sum()
        if grads:
            slope = reference.slopes(real, others, own)
            word = torch.where(real, wanted, 0)
            # A target out of range, where none looks, has made the loss NaN. As an index it would end every later
            # use of the device.
            at = word.clamp(0, words - 1)
            block = slice(0, words), logits, at, at == word
            dhidden[part] = reference.add_gradients(chunk, weight, at, slope, [block], dweight)
    return loss, dhidden, dweight


def _softmax(logits: Tensor, wanted: Tensor, ignore_index: int, grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    """softmax_kernel; the three numbers of each row as float32 [rows, 1]."""
    from glomo_kernels.decoder_loss.triton_softmax import BLOCK, WARPS, softmax_kernel

    numbers = torch.empty(3, logits.shape[0], 1, dtype=torch.float32, device=logits.device)
    with triton_device.guard(logits.device):
        softmax_kernel[(logits.shape[0],)](
            logits, wanted.contiguous(), *numbers, ignore_index, logits.shape[1], logits.stride(0),
            GRADS=grads, BLOCK_N=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    peak, others, likelihood = numbers
    return peak, others, likelihood
