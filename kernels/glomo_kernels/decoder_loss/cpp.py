"""decoder_loss in C++ (kernels/csrc/decoder_loss.cpp). Products of bfloat16 are the processor's where it has them,
other half precision is computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels import cpu_extension, dispatch
from glomo_kernels.cpu_extension import threads
from glomo_kernels.decoder_loss import reference
from glomo_kernels.decoder_loss.reference import backward as backward  # the backend's own
from glomo_kernels.extensions import contiguous
from glomo_kernels.scores import compute_dtype

CHUNK_ROWS = 384  # whose logits exist at once
STORED = {torch.bfloat16: 1, torch.float16: 2}  # enum Stored in csrc/kernels.h


def why_not(hidden: Tensor | None = None, *others: object) -> str | None:
    if missing := cpu_extension.why_not(hidden):
        return missing
    if cpu_extension.loaded().instruction_set() == "portable" and dispatch.forced("decoder_loss") != "cpp":
        return "PyTorch's products are faster than its portable loops"
    return None


def forward(
    hidden: Tensor, weight: Tensor, target: Tensor, ignore_index: int, grads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As in reference.py; the logits of a chunk lie across, one word per row."""
    dtype, (words, width) = compute_dtype(hidden), weight.shape
    half = cpu_extension.has_bfloat16(hidden) and width % cpu_extension.HALF_WIDTH == 0
    loss = hidden.new_zeros((), dtype=dtype)
    dhidden = loss.new_empty(hidden.shape if grads else (0,))
    dweight = loss.new_empty(weight.shape if grads else (0,))
    hidden, weight = contiguous(hidden, hidden.dtype if half else dtype), contiguous(weight)
    hidden = hidden if cpu_extension.in_words(hidden) else hidden.clone()
    if not len(hidden):
        return loss, dhidden, dweight.zero_()
    cpu = cpu_extension.loaded()
    line = 64 // dtype.itemsize
    kept = loss.new_empty(words * -(-min(CHUNK_ROWS, len(hidden)) // line) * line if grads else 0)
    blocks = -(-words // cpu.decoder_block)
    for start in range(0, len(hidden), CHUNK_ROWS):
        chunk, wanted = hidden[start : start + CHUNK_ROWS], target[start : start + CHUNK_ROWS, None]
        real = wanted != ignore_index
        wanted = contiguous(torch.where(real, wanted, 0))
        peaks, sums = loss.new_empty(2, blocks, len(chunk))
        likelihood = loss.new_full((len(chunk), 1), torch.nan)  # of a target out of range, where none looks
        problem = cpu.Decoder(
            is_double=dtype == torch.float64,
            is_half=half,
            hidden=chunk.data_ptr(),
            weight=weight.data_ptr(),
            target=wanted.data_ptr(),
            stored=STORED.get(weight.dtype, 0),
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
