"""Threshold search for kind "topk": per row the k-th largest square, without a row of scores in memory.

The bits of a number that is not negative are ordered like the number, so the k-th largest square is found digit by
digit, from the top: two bits per pass over the scores, which are computed again in each. 16 passes of Dg products
against the 2 of the forward pass itself. Where columns tie for the last place, the other kernels compare bits for
equality: for this kind all of them multiply tiles of one shape, q @ k^T.
"""

# mypy: ignore-errors
# (Triton's language looks like Python and is not: its values have no Python types.)

import triton
import triton.language as tl

from glomo_kernels.affinity_mix.triton_common import (
    NOT_SPECIALIZED,
    factor,
    load_spans,
    matrix,
    products,
    span_limits,
    square_bits,
)


@triton.jit
def _bits(
    tile, q, keys, k_t, columns, begin, end,
    DG: tl.constexpr, PADDED_DG: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(bits of the squares [M, N], -1 outside of the spans; columns [N]) of one tile."""
    start = tile * BLOCK_N
    column = start + tl.arange(0, BLOCK_N)
    k = factor(keys, start, k_t, columns, BLOCK_N, DG, PADDED_DG, True, CHUNK)
    bits = square_bits(products(q, k, BLOCK_M, BLOCK_N, DG, CHUNK))
    visible = (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
    return tl.where(visible, bits, -1), column


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def topk_kernel(
    q, k, spans, topk, cut, last,
    q_b, q_h, q_t, k_b, k_h, k_t, heads, rows, columns, bucket,
    DG: tl.constexpr, PADDED_DG: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """cut, last int32 [B, H, Tq]: larger squares are kept, and equal ones up to column `last`."""
    blocks = tl.cdiv(rows, BLOCK_M)
    pair = tl.program_id(0) // blocks
    block = blocks - 1 - tl.program_id(0) % blocks
    sample, head = pair // heads, pair % heads

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    begin, end = load_spans(spans, sample, row, rows)
    first, stop, _inner_first, _inner_stop = span_limits(begin, end, columns)
    first_tile, last_tile = first // BLOCK_N, tl.cdiv(stop, BLOCK_N)
    # More than there are columns is all of them; int32 is enough then.
    count = tl.minimum(tl.load(topk + sample), columns).to(tl.int32)
    keys = matrix(k, sample, head, k_b, k_h)
    queries = matrix(q, sample, head, q_b, q_h)
    q_rows = factor(queries, block * BLOCK_M, q_t, rows, BLOCK_M, DG, PADDED_DG, True, CHUNK)

    found = tl.zeros([BLOCK_M], tl.int32)
    for digit in range(16):
        # Bits 30 | 29 28 | .. | 1 0. The first digit has one bit: its other two candidates are negative.
        shift = 30 - 2 * digit
        one, two, three = found | (1 << shift), found | (2 << shift), found | (3 << shift)
        above_one = tl.zeros([BLOCK_M], tl.int32)
        above_two = tl.zeros([BLOCK_M], tl.int32)
        above_three = tl.zeros([BLOCK_M], tl.int32)
        for tile in range(first_tile, last_tile):
            bits, column = _bits(
                tile, q_rows, keys, k_t, columns, begin, end, DG, PADDED_DG, CHUNK, BLOCK_M, BLOCK_N
            )
            above_one += tl.sum((bits >= one[:, None]).to(tl.int32), 1)
            above_two += tl.sum((bits >= two[:, None]).to(tl.int32), 1)
            above_three += tl.sum((bits >= three[:, None]).to(tl.int32), 1)
        found = tl.where(
            (above_three >= count) & (three > 0),
            three,
            tl.where((above_two >= count) & (two > 0), two, tl.where(above_one >= count, one, found)),
        )

    above = tl.zeros([BLOCK_M], tl.int32)
    equal = tl.zeros([BLOCK_M], tl.int32)
    below = tl.zeros([BLOCK_M], tl.int32)
    for tile in range(first_tile, last_tile):
        bits, column = _bits(
            tile, q_rows, keys, k_t, columns, begin, end, DG, PADDED_DG, CHUNK, BLOCK_M, BLOCK_N
        )
        above += tl.sum((bits > found[:, None]).to(tl.int32), 1)
        equal += tl.sum((bits == found[:, None]).to(tl.int32), 1)
        below = tl.maximum(below, tl.max(tl.where(bits < found[:, None], bits, 0), 1))
    room = count - above
    # Only where more columns are equal than there is room for: one more pass, in the order of the columns.
    tied = (equal > room) & (found > 0)
    behind = tl.where(tl.max(tied.to(tl.int32), 0) > 0, last_tile, first_tile)
    column_of_last = tl.full([BLOCK_M], 0x7FFFFFFF, tl.int32)
    before = tl.zeros([BLOCK_M], tl.int32)
    for tile in range(first_tile, behind):
        bits, column = _bits(
            tile, q_rows, keys, k_t, columns, begin, end, DG, PADDED_DG, CHUNK, BLOCK_M, BLOCK_N
        )
        same = (bits == found[:, None]).to(tl.int32)
        place = before[:, None] + tl.cumsum(same, 1)
        is_last = (same == 1) & (place == room[:, None])
        here = tl.min(tl.where(is_last, column[None, :], 0x7FFFFFFF), 1)
        column_of_last = tl.where(tied, tl.minimum(column_of_last, here), column_of_last)
        before += tl.sum(same, 1)

    at = tl.cast(pair, tl.int64) * rows + row
    # Without a tie the cut stands halfway to the next square: the other kernels need not agree in the last bit.
    tl.store(cut + at, tl.where(tied, found, below + (found - below) // 2), mask=row < rows)
    tl.store(last + at, column_of_last, mask=row < rows)
