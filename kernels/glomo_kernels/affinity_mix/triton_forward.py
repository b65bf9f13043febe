"""Forward kernel of affinity_mix: one program per block of query rows, over the key tiles of its spans."""

# mypy: ignore-errors
# (Triton's language looks like Python and is not: its values have no Python types.)

import triton
import triton.language as tl

from glomo_kernels.affinity_mix.triton_common import (
    EPSILON,
    GROUP,
    LARGEST_SCALE,
    LIVE,
    NOT_SPECIALIZED,
    dot,
    factor,
    largest_power,
    load_cut,
    load_rows,
    load_spans,
    load_theta,
    matrix,
    products,
    roots,
    span_limits,
)


@triton.jit
def _tiles(
    first_left,
    count_left,
    first_right,
    count,
    state,
    q,
    keys,
    values,
    k_t,
    v_t,
    columns,
    rows_of,
    ones,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    SCALED: tl.constexpr,
    DG: tl.constexpr,
    DV: tl.constexpr,
    PADDED_DG: tl.constexpr,
    PADDED_DV: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add `count` tiles of keys to state: count_left from first_left on, the others from first_right on.

    state    (sums of r^2 v [M, PADDED_DV], of r^2 [M], of r^2 as it is multiplied (rounded, scaled) [M, SUMS],
             bits of live tiles [M], scale [M])
    rows_of  (theta, begin, end, cut, last), [M] each
    """
    total, norm, divisor, bits, scale = state
    theta, begin, end, cut, last = rows_of
    for step in range(count):
        tile = tl.where(step < count_left, first_left + step, first_right + (step - count_left))
        start = tile * BLOCK_N
        column = start + tl.arange(0, BLOCK_N)
        k = factor(keys, start, k_t, columns, BLOCK_N, DG, PADDED_DG, MASKED, CHUNK)
        score = products(q, k, BLOCK_M, BLOCK_N, DG, CHUNK)
        root = roots(
            score,
            theta[:, None],
            column[None, :],
            begin[:, None],
            end[:, None],
            cut[:, None],
            last[:, None],
            KIND,
            MASKED,
        )
        weight = root * root
        if BLOCK_N > LIVE:
            # The reshape costs nothing: the columns of a part are in one thread or its neighbours, as before.
            parts = tl.sum(tl.reshape(weight, (BLOCK_M, BLOCK_N // LIVE, LIVE)), 2)
            number = (start // LIVE) % GROUP + tl.arange(0, BLOCK_N // LIVE)
            bits |= tl.sum(tl.where(parts == 0, 0, 1 << number[None, :]), 1)
            added = tl.sum(parts, 1)
        else:
            added = tl.sum(weight, 1)
            bits |= tl.where(added == 0, 0, 1 << ((start // LIVE) % GROUP))
        norm += added
        if SCALED:
            # float16 holds neither r^2 above 65504 nor below 6e-8: scale each row by a power of two, which is exact.
            largest = tl.max(tl.abs(root), 1)
            smaller = tl.minimum(scale, largest_power(largest))
            change = smaller / scale
            total = total * (change * change)[:, None]
            divisor = divisor * (change * change)[:, None]
            scale = smaller
            root = root * scale[:, None]
            weight = root * root
        v = load_rows(values, start, v_t, columns, BLOCK_N, DV, PADDED_DV, MASKED)
        rounded = weight.to(v.dtype)
        if rounded.dtype == tl.float32:
            divisor += tl.sum(rounded, 1)[:, None]
        else:
            # A sum of what was rounded, on the vector units, undoes each rounding by a slow instruction of its own.
            divisor += dot(rounded, ones)
        total += dot(rounded, v)
    return total, norm, divisor, bits, scale


@triton.jit
def _statistics(
    first,
    stop,
    norm,
    q,
    keys,
    k_t,
    columns,
    rows_of,
    KIND: tl.constexpr,
    DG: tl.constexpr,
    PADDED_DG: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(edges int32, entropy float32) [M] of the tiles first .. stop. A second pass: shares need the row's sum."""
    theta, begin, end, cut, last = rows_of
    edges = tl.zeros([BLOCK_M], tl.int32)
    entropy = tl.zeros([BLOCK_M], tl.float32)
    divisor = tl.where(norm == 0, 1.0, norm)
    for tile in range(first, stop):
        start = tile * BLOCK_N
        column = start + tl.arange(0, BLOCK_N)
        k = factor(keys, start, k_t, columns, BLOCK_N, DG, PADDED_DG, True, CHUNK)
        root = roots(
            products(q, k, BLOCK_M, BLOCK_N, DG, CHUNK),
            theta[:, None],
            column[None, :],
            begin[:, None],
            end[:, None],
            cut[:, None],
            last[:, None],
            KIND,
            True,
        )
        share = root * root / divisor[:, None]
        edges += tl.sum((root * root > 0).to(tl.int32), 1)
        entropy -= tl.sum(tl.where(share == 0, 0.0, share * tl.log(tl.where(share == 0, 1.0, share))), 1)
    return edges, entropy


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward_kernel(
    q,
    k,
    v,
    theta,
    spans,
    cut,
    last,
    mixed,
    norm,
    edges,
    entropy,
    live,
    q_b,
    q_h,
    q_t,
    k_b,
    k_h,
    k_t,
    v_b,
    v_h,
    v_t,
    heads,
    rows,
    columns,
    bucket,
    KIND: tl.constexpr,
    THETA: tl.constexpr,
    STATS: tl.constexpr,
    SCALED: tl.constexpr,
    DG: tl.constexpr,
    DV: tl.constexpr,
    PADDED_DG: tl.constexpr,
    PADDED_DV: tl.constexpr,
    CHUNK: tl.constexpr,
    TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """mixed [B, H, Tq, DV], norm [B, H, Tq], live [B, H, .., ..] and with STATS edges, entropy [B, H, Tq].

    Formulas: reference.py. Programs: B * H * blocks of BLOCK_M rows; no two write to the same place.

    TMA  k and v came as tensor descriptors (triton_launch.py)
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    pair = tl.program_id(0) // blocks
    # In the causal triangle the last rows have the most keys: longest first leaves the shortest tail.
    block = blocks - 1 - tl.program_id(0) % blocks
    sample, head = pair // heads, pair % heads
    offset = tl.cast(pair, tl.int64) * rows

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    begin, end = load_spans(spans, sample, row, rows)
    first, stop, inner_first, inner_stop = span_limits(begin, end, columns)
    row_theta = load_theta(theta, offset, row, rows, THETA)
    row_cut, row_last = load_cut(cut, last, offset, row, rows, KIND)
    rows_of = (row_theta, begin, end, row_cut, row_last)

    queries = matrix(q, sample, head, q_b, q_h)
    keys = matrix(k, sample, head, k_b, k_h)
    values = matrix(v, sample, head, v_b, v_h)
    q_rows = factor(queries, block * BLOCK_M, q_t, rows, BLOCK_M, DG, PADDED_DG, True, CHUNK)

    # Tiles left .. right are inside of every span; those at the edges are masked, all where a row sees nothing.
    last_tile = tl.cdiv(stop, BLOCK_N)
    first_tile = tl.minimum(first // BLOCK_N, last_tile)
    left = tl.minimum(tl.maximum(tl.cdiv(inner_first, BLOCK_N), first_tile), last_tile)
    right = tl.maximum(tl.minimum(inner_stop // BLOCK_N, last_tile), left)
    blind = tl.max(((begin >= end) & (row < rows)).to(tl.int32), 0)
    right = tl.where(blind > 0, left, right)
    if CHUNK > 0:
        left = last_tile
        right = last_tile

    total = tl.zeros([BLOCK_M, PADDED_DV], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    # As a product with ones; tl.dot has 16 columns at least, all the same.
    SUMS: tl.constexpr = 1 if mixed.dtype.element_ty == tl.float32 else 16
    divisor = tl.zeros([BLOCK_M, SUMS], tl.float32)
    ones = tl.full([BLOCK_N, SUMS], 1.0, mixed.dtype.element_ty)
    scale = tl.full([BLOCK_M], LARGEST_SCALE, tl.float32)
    live_columns = tl.cdiv(columns, LIVE)
    live_rows = tl.cdiv(rows, LIVE)
    live_row = block * (BLOCK_M // LIVE) + tl.arange(0, BLOCK_M // LIVE)
    live_offset = tl.cast(pair, tl.int64) * live_rows * live_columns
    PER_GROUP: tl.constexpr = GROUP * LIVE // BLOCK_N
    for group in range(tl.cdiv(live_columns, GROUP)):
        low, high = group * PER_GROUP, group * PER_GROUP + PER_GROUP
        a, b = tl.minimum(tl.maximum(first_tile, low), high), tl.minimum(tl.maximum(left, low), high)
        c, d = tl.minimum(tl.maximum(right, low), high), tl.minimum(tl.maximum(last_tile, low), high)
        state = (total, row_sum, divisor, tl.zeros([BLOCK_M], tl.int32), scale)
        state = _tiles(
            a, b - a, c, (b - a) + (d - c), state, q_rows, keys, values, k_t, v_t, columns, rows_of, ones,
            KIND, True, SCALED, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        if CHUNK == 0:
            state = _tiles(
                b, c - b, c, c - b, state, q_rows, keys, values, k_t, v_t, columns, rows_of, ones,
                KIND, False, SCALED, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        total, row_sum, divisor, bits, scale = state
        number = tl.arange(0, GROUP)
        flags = tl.reshape((bits[:, None] >> number[None, :]) & 1, (BLOCK_M // LIVE, LIVE, GROUP))
        live_column = group * GROUP + number
        tl.store(
            live + live_offset + live_row[:, None] * live_columns + live_column[None, :],
            tl.max(flags, 1).to(tl.uint8),
            mask=(live_row < live_rows)[:, None] & (live_column < live_columns)[None, :],
        )

    # Divided by the sum of the weights as they were multiplied: by the exact sum, a row of one edge would be off by
    # that edge's rounding, and dO . O in the backward pass with it.
    epsilon = EPSILON * scale * scale if SCALED else EPSILON
    total = total * tl.div_rn(1.0, tl.sum(divisor, 1) / SUMS + epsilon)[:, None]
    column = tl.arange(0, PADDED_DV)
    tl.store(
        mixed + (offset + row)[:, None] * DV + column[None, :],
        total.to(mixed.dtype.element_ty),
        mask=(row < rows)[:, None] & (column < DV)[None, :],
    )
    tl.store(norm + offset + row, row_sum, mask=row < rows)
    if STATS:
        edge_count, nats = _statistics(
            first_tile, last_tile, row_sum, q_rows, keys, k_t, columns, rows_of,
            KIND, DG, PADDED_DG, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.store(edges + offset + row, edge_count, mask=row < rows)
        tl.store(entropy + offset + row, nats, mask=row < rows)
