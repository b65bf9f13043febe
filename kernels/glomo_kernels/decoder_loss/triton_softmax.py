"""What decoder_loss does to a chunk of logits between its products: one program per row."""

# mypy: ignore-errors
# (Triton's language looks like Python and is not: its values have no Python types.)

import triton
import triton.language as tl

# Words that a program looks at at a time, and its warps: four loads of 16 bytes per thread in half precision.
BLOCK = 8192
WARPS = 8


# Numbers of rows differ, and with them where a chunk's numbers begin: no reason to compile again.
ROW_NUMBERS = ["target", "peaks", "others", "likelihoods"]


@triton.jit
def _scores(line, column, words, step):
    """float32; -inf behind the last word."""
    score = tl.load(line + column, mask=column < step, other=float("-inf")).to(tl.float32)
    return tl.where(column < words, score, float("-inf"))


@triton.jit(do_not_specialize=["ignore_index"], do_not_specialize_on_alignment=ROW_NUMBERS)
def softmax_kernel(
    logits, target, peaks, others, likelihoods, ignore_index, words, step, GRADS: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Of each row z of logits [rows, words] with target t: the largest, sum_{j != t} exp(z_j - largest), and z_t.

    With GRADS the row is overwritten by softmax(z), 0 at t and everywhere if t is ignore_index. float32 inside.

    step  from one row to the next. What lies between is read too, and overwritten by 0: with a mask that ends at any
          number of words, a load of 8 numbers would be 8 loads.
    """
    row = tl.program_id(0)
    line = logits + tl.cast(row, tl.int64) * step
    wanted = tl.load(target + row)
    word = tl.where(wanted == ignore_index, 0, wanted)
    # Before the sums, which all threads wait for, so that no other has overwritten it yet.
    likelihood = tl.load(line + word, mask=(word >= 0) & (word < words), other=float("nan")).to(tl.float32)

    peak = tl.maximum(likelihood, -3.4028234663852886e38)  # float32's least number: -inf cannot be subtracted
    total = tl.where(likelihood == likelihood, 0.0, likelihood)
    for start in range(0, words, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        score = _scores(line, column, words, step)
        higher = tl.maximum(peak, tl.max(score, 0))
        share = tl.where(column == word, 0.0, tl.exp(score - higher))
        total = total * tl.exp(peak - higher) + tl.sum(share, 0)
        peak = higher
    tl.store(peaks + row, peak)
    tl.store(others + row, total)
    tl.store(likelihoods + row, likelihood)
    if GRADS:
        scale = tl.where(wanted == ignore_index, 0.0, 1.0 / (total + tl.exp(likelihood - peak)))
        for start in range(0, words, BLOCK_N):
            column = start + tl.arange(0, BLOCK_N)
            score = _scores(line, column, words, step)
            share = tl.where(column == word, 0.0, tl.exp(score - peak) * scale)
            tl.store(line + column, share.to(logits.dtype.element_ty), mask=column < step)
