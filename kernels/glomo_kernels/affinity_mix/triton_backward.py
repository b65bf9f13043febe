"""Backward kernels of affinity_mix: q and theta over blocks of query rows, then k and v over blocks of keys.

Two kernels that each compute the scores again need no atomics: no two programs write to the same place, and every
sum has one order. The formulas are those of reference.py, with 1 / l_i = 0 for rows without weight.

D_i = sum_j (a_ij / l_i) dO_i . v_j. Where the output is rounded, dO_i . O_i misses it by a rounding of the output,
and the slope 2 r_ij / l_i, at most 2 / sqrt(l_i), multiplies the difference. So D_i = dO_i . O_i is only taken in
half precision, for blocks of rows with l_i >= 1. Other blocks add what is missing, sum_j (a_ij / l_i) (dO_i . v_j -
dO_i . O_i), in a first pass over the same products (Dg + Dv more of them per score, to 4 Dg + 3 Dv of both kernels).
"""

# mypy: ignore-errors
# (Triton's language looks like Python and is not: its values have no Python types.)

import triton
import triton.language as tl

from glomo_kernels.affinity_mix.triton_common import (
    EPSILON,
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
    store_rows,
)


@triton.jit
def _start(list_, step, STEP: tl.constexpr):
    """First row or column of step `step` of the loop over a list; a tile of LIVE takes LIVE / STEP steps."""
    PARTS: tl.constexpr = LIVE // STEP
    place = step // PARTS
    return tl.load(list_ + place) * LIVE + (step - place * PARTS) * STEP


@triton.jit
def _roots_and_slopes(
    start, q, grad, keys, values, k_t, v_t, columns, rows_of,
    KIND: tl.constexpr, MASKED: tl.constexpr, DG: tl.constexpr, DV: tl.constexpr,
    PADDED_DG: tl.constexpr, PADDED_DV: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(k as a factor, r [M, N], dO . v [M, N]) of the keys from `start` on."""
    theta, begin, end, cut, last = rows_of
    column = start + tl.arange(0, BLOCK_N)
    k = factor(keys, start, k_t, columns, BLOCK_N, DG, PADDED_DG, MASKED, CHUNK)
    v = factor(values, start, v_t, columns, BLOCK_N, DV, PADDED_DV, MASKED, CHUNK)
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
    return k, root, products(grad, v, BLOCK_M, BLOCK_N, DV, CHUNK)


@triton.jit
def _query_tiles(
    list_, first_step, stop_step, state, scale, mean, q, grad, keys, values, k_t, v_t, columns, rows_of,
    KIND: tl.constexpr, MASKED: tl.constexpr, SCALED: tl.constexpr, DG: tl.constexpr, DV: tl.constexpr,
    PADDED_DG: tl.constexpr, PADDED_DV: tl.constexpr, CHUNK: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add steps of the list to state: sum_j e_ij k_j [M, PADDED_DG], sum_j e_ij [M], e = r (dO . v - D) (scaled)."""
    d_query, row_sum = state
    for step in range(first_step, stop_step):
        k, root, d_share = _roots_and_slopes(
            _start(list_, step, BLOCK_N), q, grad, keys, values, k_t, v_t, columns, rows_of,
            KIND, MASKED, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        if SCALED:
            root = root * scale[:, None]
        slope = root * (d_share - mean[:, None])
        row_sum += tl.sum(slope, 1)
        if CHUNK > 0:
            k_tile = load_rows(k[1], k[2], k[3], k[4], BLOCK_N, DG, PADDED_DG, True)
        else:
            k_tile = k[0]
        d_query += dot(slope.to(k_tile.dtype), k_tile)
    return d_query, row_sum


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def query_kernel(
    q, k, v, theta, spans, cut, last, grad, mixed, norm, lists, counts, dq, dtheta, means, inverses,
    thresholds,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, grad_b, grad_h, grad_t,
    heads, rows, columns, bucket,
    KIND: tl.constexpr, THETA: tl.constexpr, SCALED: tl.constexpr, EXACT: tl.constexpr,
    DG: tl.constexpr, DV: tl.constexpr, PADDED_DG: tl.constexpr, PADDED_DV: tl.constexpr, CHUNK: tl.constexpr,
    TMA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq [B, H, Tq, DG], dtheta [B, H, Tq]; for key_kernel D (means), 1 / l (inverses), theta, float32 [B, H, Tq].

    key_kernel goes over rows and loads these for every tile; ahead of time only if they are of four bytes.

    EXACT   sum up D over the products in every block
    TMA     k and v came as tensor descriptors (triton_launch.py)
    SCALED  float16: bring slopes to at most |dO . v - D| before they are rounded
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    pair = tl.program_id(0) // blocks
    block = blocks - 1 - tl.program_id(0) % blocks  # the longest rows first, as in the forward pass
    sample, head = pair // heads, pair % heads
    offset = tl.cast(pair, tl.int64) * rows

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    begin, end = load_spans(spans, sample, row, rows)
    row_theta = load_theta(theta, offset, row, rows, THETA)
    row_cut, row_last = load_cut(cut, last, offset, row, rows, KIND)
    rows_of = (row_theta, begin, end, row_cut, row_last)
    row_norm = tl.load(norm + offset + row, mask=row < rows, other=0.0)
    inverse = tl.where(row_norm == 0, 0.0, 1.0 / (row_norm + EPSILON))
    scale = tl.sqrt(inverse)

    first_row = block * BLOCK_M
    queries = matrix(q, sample, head, q_b, q_h)
    keys = matrix(k, sample, head, k_b, k_h)
    values = matrix(v, sample, head, v_b, v_h)
    q_rows = factor(queries, first_row, q_t, rows, BLOCK_M, DG, PADDED_DG, True, CHUNK)
    d_mixed = matrix(grad, sample, head, grad_b, grad_h)
    grad_tile = load_rows(d_mixed, first_row, grad_t, rows, BLOCK_M, DV, PADDED_DV, True)
    grad_rows = (grad_tile, d_mixed, first_row, grad_t, rows)
    mixed_tile = load_rows(mixed + offset * DV, first_row, DV, rows, BLOCK_M, DV, PADDED_DV, True)
    shares = grad_tile.to(tl.float32) * mixed_tile.to(tl.float32)
    if DV != PADDED_DV:
        # Not a bare product: where a thread has one number of a row, the compiler fuses its multiplication into the
        # sum with another thread's number. Each of the two then rounds its own, and both write to one place.
        shares = tl.where(tl.arange(0, PADDED_DV)[None, :] < DV, shares, 0.0)
    mean = tl.sum(shares, 1)

    column_tiles = tl.cdiv(columns, LIVE)
    at = tl.cast(pair, tl.int64) * blocks + block
    edges = lists + at * column_tiles
    edge_steps = tl.load(counts + at * 2) * (LIVE // BLOCK_N)
    inner_tiles = tl.load(counts + at * 2 + 1)
    inner_steps = inner_tiles * (LIVE // BLOCK_N)
    inners = edges + column_tiles - inner_tiles

    exact_edges, exact_inners = edge_steps, inner_steps
    if not EXACT:
        steep = tl.min(tl.where(row_norm == 0, 1.0, row_norm), 0) < 1.0
        exact_edges = tl.where(steep, edge_steps, 0)
        exact_inners = tl.where(steep, inner_steps, 0)
    missing = tl.zeros([BLOCK_M], tl.float32)
    for step in range(exact_edges + exact_inners):
        # One masked loop for both parts of the list, which is the end of one and the start of the other.
        part = tl.where(step < exact_edges, edges, inners)
        place = tl.where(step < exact_edges, step, step - exact_edges)
        _, root, d_share = _roots_and_slopes(
            _start(part, place, BLOCK_N), q_rows, grad_rows, keys, values, k_t, v_t, columns, rows_of,
            KIND, True, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        missing += tl.sum(root * root * (d_share - mean[:, None]), 1)
    # The shares sum up to l / (l + epsilon): not 1 for rows that are nearly empty, and exactly 1 for the others. Not
    # as a quotient: a GPU's is a product with a rounded reciprocal.
    whole = 1.0 - EPSILON * inverse
    mean = tl.where(exact_edges + exact_inners > 0, mean * whole + missing * inverse, mean)

    state = (tl.zeros([BLOCK_M, PADDED_DG], tl.float32), tl.zeros([BLOCK_M], tl.float32))
    state = _query_tiles(
        edges, 0, edge_steps, state, scale, mean, q_rows, grad_rows, keys, values, k_t, v_t, columns, rows_of,
        KIND, True, SCALED, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    d_query, row_sum = _query_tiles(
        inners, 0, inner_steps, state, scale, mean, q_rows, grad_rows, keys, values, k_t, v_t, columns, rows_of,
        KIND, CHUNK > 0, SCALED, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    slope = 2.0 * scale if SCALED else 2.0 * inverse
    store_rows(dq + offset * DG, first_row, DG, rows, d_query * slope[:, None], BLOCK_M, DG, PADDED_DG)
    tl.store(means + offset + row, mean, mask=row < rows)
    tl.store(inverses + offset + row, inverse, mask=row < rows)
    if THETA:
        tl.store(thresholds + offset + row, row_theta, mask=row < rows)
        tl.store(dtheta + offset + row, (-row_sum * slope).to(dtheta.dtype.element_ty), mask=row < rows)


@triton.jit
def _key_tiles(
    list_, steps, state, k, v, column, queries, d_mixed, q_t, grad_t, thresholds, spans, sample, cut, last, inverses,
    means, offset, rows,
    KIND: tl.constexpr, THETA: tl.constexpr, SAME: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr,
    DG: tl.constexpr, DV: tl.constexpr, PADDED_DG: tl.constexpr, PADDED_DV: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add steps of the list to state.

    state  (sum_i dS_ij q_i / 2, scaled [N, PADDED_DG], sum_i (a_ij / l_i) dO_i [N, PADDED_DV], scale [N])
    """
    d_key, d_value, scale = state
    for step in range(steps):
        start = _start(list_, step, BLOCK_M)
        row = start + tl.arange(0, BLOCK_M)
        if MASKED:
            begin, end = load_spans(spans, sample, row, rows)
        else:
            begin, end = tl.zeros_like(row), tl.zeros_like(row)
        row_theta = load_theta(thresholds, offset, row, rows, THETA)
        row_cut, row_last = load_cut(cut, last, offset, row, rows, KIND)
        inverse = tl.load(inverses + offset + row, mask=row < rows, other=0.0)
        mean = tl.load(means + offset + row, mask=row < rows, other=0.0)
        q = load_rows(queries, start, q_t, rows, BLOCK_M, DG, PADDED_DG, MASKED)
        grad = load_rows(d_mixed, start, grad_t, rows, BLOCK_M, DV, PADDED_DV, MASKED)
        q_rows, grad_rows = (q, queries, start, q_t, rows), (grad, d_mixed, start, grad_t, rows)
        if SAME:
            score = tl.trans(products(q_rows, k, BLOCK_M, BLOCK_N, DG, CHUNK))
        else:
            score = products(k, q_rows, BLOCK_N, BLOCK_M, DG, CHUNK)
        root = roots(
            score, row_theta[None, :], column[:, None], begin[None, :], end[None, :], row_cut[None, :],
            row_last[None, :], KIND, MASKED,
        )  # fmt: skip
        share = root * inverse[None, :]
        d_value += dot((share * root).to(grad.dtype), grad)
        if SAME:
            d_share = tl.trans(products(grad_rows, v, BLOCK_M, BLOCK_N, DV, CHUNK))
        else:
            d_share = products(v, grad_rows, BLOCK_N, BLOCK_M, DV, CHUNK)
        slope = share * (d_share - mean[None, :])
        if SCALED:
            # r / l grows as the scores shrink: scale each key's slopes by a power of two, which is exact.
            smaller = tl.minimum(scale, largest_power(tl.max(tl.abs(slope), 1)))
            d_key = d_key * (smaller / scale)[:, None]
            scale = smaller
            slope = slope * scale[:, None]
        d_key += dot(slope.to(q.dtype), q)
    return d_key, d_value, scale


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def key_kernel(
    q, k, v, thresholds, spans, cut, last, grad, inverses, means, lists, counts, dk, dv,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, grad_b, grad_h, grad_t,
    heads, rows, columns, bucket,
    KIND: tl.constexpr, THETA: tl.constexpr, SAME: tl.constexpr, SCALED: tl.constexpr, DG: tl.constexpr,
    DV: tl.constexpr, PADDED_DG: tl.constexpr, PADDED_DV: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk [B, H, T, DG] and dv [B, H, T, DV], of blocks of BLOCK_N keys in steps of BLOCK_M query rows.

    SCALED  float16: slopes are scaled before they are rounded
    SAME    multiply q @ k^T and dO @ v^T and transpose, as the other kernels do, instead of k @ q^T and v @ dO^T. In
          rows that one edge rules, the row's sum and D cancel with these products only if the bits are the same.
          On a GPU they are (the same instructions, in the same order along the width); in the interpreter, and in
          a tie of kind topk for tiles of another shape, they may differ.
    """
    blocks = tl.cdiv(columns, BLOCK_N)
    pair = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks  # in the causal triangle the first keys are seen by the most rows
    sample, head = pair // heads, pair % heads
    offset = tl.cast(pair, tl.int64) * rows
    out = tl.cast(pair, tl.int64) * columns

    first_key = block * BLOCK_N
    column = first_key + tl.arange(0, BLOCK_N)
    keys = matrix(k, sample, head, k_b, k_h)
    values = matrix(v, sample, head, v_b, v_h)
    k_rows = factor(keys, first_key, k_t, columns, BLOCK_N, DG, PADDED_DG, True, CHUNK)
    v_rows = factor(values, first_key, v_t, columns, BLOCK_N, DV, PADDED_DV, True, CHUNK)
    queries = matrix(q, sample, head, q_b, q_h)
    d_mixed = matrix(grad, sample, head, grad_b, grad_h)

    row_tiles = tl.cdiv(rows, LIVE)
    at = tl.cast(tl.program_id(0), tl.int64)
    edges = lists + at * row_tiles
    edge_tiles, inner_tiles = tl.load(counts + at * 2), tl.load(counts + at * 2 + 1)
    state = (
        tl.zeros([BLOCK_N, PADDED_DG], tl.float32),
        tl.zeros([BLOCK_N, PADDED_DV], tl.float32),
        tl.full([BLOCK_N], LARGEST_SCALE, tl.float32),
    )
    state = _key_tiles(
        edges, edge_tiles * (LIVE // BLOCK_M), state, k_rows, v_rows, column, queries, d_mixed, q_t, grad_t,
        thresholds, spans, sample, cut, last, inverses, means, offset, rows,
        KIND, THETA, SAME, SCALED, True, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    d_key, d_value, scale = _key_tiles(
        edges + row_tiles - inner_tiles, inner_tiles * (LIVE // BLOCK_M), state, k_rows, v_rows, column, queries,
        d_mixed, q_t, grad_t, thresholds, spans, sample, cut, last, inverses, means, offset, rows,
        KIND, THETA, SAME, SCALED, CHUNK > 0, DG, DV, PADDED_DG, PADDED_DV, CHUNK, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if SCALED:
        d_key = d_key / scale[:, None]
    store_rows(dk + out * DG, first_key, DG, columns, 2.0 * d_key, BLOCK_N, DG, PADDED_DG)
    store_rows(dv + out * DV, first_key, DV, columns, d_value, BLOCK_N, DV, PADDED_DV)
