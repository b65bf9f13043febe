"""decoder_loss in C++ (kernels/csrc/decoder_loss.cpp), float32 and float64."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels import compiled
from glomo_kernels.compiled import contiguous, threads
from glomo_kernels.decoder_loss import reference
from glomo_kernels.decoder_loss.reference import backward as backward  # the backend's own

CHUNK_ROWS = 384  # whose logits exist at once
DTYPES = (torch.float32, torch.float64)


def why_not(hidden: Tensor | None = None, *others: object) -> str | None:
    if hidden is not None and hidden.dtype not in DTYPES:
        return f"PyTorch multiplies {hidden.dtype} by instructions of its own (C++ takes float32 and float64)"
    return compiled.why_not(hidden)


def forward(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As in reference.py; the logits of a chunk lie across, one word per row."""
    dtype, words, width = hidden.dtype, *weight.shape
    hidden, weight = contiguous(hidden), contiguous(weight)
    loss = hidden.new_zeros(())
    dhidden = torch.empty_like(hidden) if grads else hidden.new_empty(0)
    dweight = torch.empty_like(weight) if grads else weight.new_empty(0)
    if not len(hidden):
        return loss, dhidden, dweight.zero_()
    cpu = compiled.cpu()
    line = 64 // dtype.itemsize
    kept = hidden.new_empty(words * -(-min(CHUNK_ROWS, len(hidden)) // line) * line if grads else 0)
    blocks = -(-words // cpu.decoder_block)
    for start in range(0, len(hidden), CHUNK_ROWS):
        chunk, wanted = hidden[start : start + CHUNK_ROWS], target[start : start + CHUNK_ROWS, None]
        real = wanted != ignore_index
        wanted = contiguous(torch.where(real, wanted, 0))
        peaks, sums = hidden.new_empty(2, blocks, len(chunk))
        likelihood = hidden.new_empty(len(chunk), 1)
        problem = cpu.Decoder(
            is_double=dtype == torch.float64,
            hidden=chunk.data_ptr(),
            weight=weight.data_ptr(),
            target=wanted.data_ptr(),
            rows=len(chunk),
            words=words,
            width=width,
        )
        memory = kept.data_ptr() if grads else 0
        cpu.decoder_exponentials(
            problem, memory, peaks.data_ptr(), sums.data_ptr(), likelihood.data_ptr(), threads()
        )
        chunk_loss, slope, factor = reference.join(real, likelihood, peaks.t(), sums.t())
        loss += chunk_loss
        if grads:
            cpu.decoder_gradients(
                problem,
                memory,
                factor.data_ptr(),  # peaks, overwritten: one block after the other
                slope.data_ptr(),
                dhidden[start:].data_ptr(),
                dweight.data_ptr(),
                start > 0,
                threads(),
            )
    return loss, dhidden, dweight
