"""Lists of the live tiles of scores, which the backward kernels go through.

A branch around a dead tile would stop the software pipelining of the loop around it; a loop over a list does not.
Tiles that the edge of a span crosses fill a list from its start, the others (which need no mask) from its end:

    rows      [B, H, blocks of query rows, tiles of keys]     tiles of keys for the gradient of q
    columns   [B, H, blocks of keys, tiles of query rows]     tiles of query rows for the gradients of k and v

with the two counts per list beside it. All int32: 8 bytes per tile of 64 x 64 scores that eager keeps in 16,384.
"""

# mypy: ignore-errors
# (Triton's language looks like Python and is not: its values have no Python types.)

import triton
import triton.language as tl

from glomo_kernels.affinity_mix.triton_common import LIVE, load_spans, span_limits

CHUNK = tl.constexpr(128)  # flags that a program looks at together
LIMITS = tl.constexpr(8)  # int32 numbers per tile of rows, 6 of them used


@triton.jit(do_not_specialize=["rows", "columns"])
def limits_kernel(spans, limits, rows, columns):
    """limits [B, tiles of rows, LIMITS]: span_limits of each tile of rows, whether every row sees something, and
    whether every row does that is there."""
    tiles = tl.cdiv(rows, LIVE)
    sample, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = tile * LIVE + tl.arange(0, LIVE)
    begin, end = load_spans(spans, sample, row, rows)
    first, stop, inner_first, inner_stop = span_limits(begin, end, columns)
    at = limits + tl.cast(tl.program_id(0), tl.int64) * LIMITS
    tl.store(at, first)
    tl.store(at + 1, stop)
    tl.store(at + 2, inner_first)
    tl.store(at + 3, inner_stop)
    tl.store(at + 4, tl.min((begin < end).to(tl.int32), 0))
    tl.store(at + 5, tl.min(((begin < end) | (row >= rows)).to(tl.int32), 0))


@triton.jit
def _append(list_, size, tile, here, inner, edges, inners):
    """Write the tiles with `here` set, `inner` ones from the end of the list, others from its start; count them."""
    edge = (here & ~inner).to(tl.int32)
    inner = (here & inner).to(tl.int32)
    tl.store(list_ + edges + tl.cumsum(edge, 0) - edge, tile, mask=edge > 0)
    tl.store(list_ + size - inners - tl.cumsum(inner, 0), tile, mask=inner > 0)
    return edges + tl.sum(edge, 0), inners + tl.sum(inner, 0)


@triton.jit(do_not_specialize=["heads", "rows", "columns"])
def row_lists_kernel(live, limits, lists, counts, heads, rows, columns, BLOCK_M: tl.constexpr):
    """One program per block of query rows: its list of tiles of keys, all edges where a row sees nothing."""
    row_tiles, column_tiles = tl.cdiv(rows, LIVE), tl.cdiv(columns, LIVE)
    blocks = tl.cdiv(rows, BLOCK_M)
    pair, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    PARTS: tl.constexpr = BLOCK_M // LIVE
    row_tile = block * PARTS + tl.arange(0, PARTS)
    present = row_tile < row_tiles
    at = limits + (tl.cast(pair // heads, tl.int64) * row_tiles + row_tile) * LIMITS
    first = tl.min(tl.load(at, mask=present, other=0x7FFFFFFF), 0)
    stop = tl.max(tl.load(at + 1, mask=present, other=0), 0)
    inner_first = tl.max(tl.load(at + 2, mask=present, other=0), 0)
    inner_stop = tl.min(tl.load(at + 3, mask=present, other=0x7FFFFFFF), 0)
    full = tl.min(tl.load(at + 5, mask=present, other=1), 0)
    list_ = lists + tl.cast(tl.program_id(0), tl.int64) * column_tiles
    flags = live + (tl.cast(pair, tl.int64) * row_tiles + row_tile[:, None]) * column_tiles
    edges = tl.zeros([], tl.int32)
    inners = tl.zeros([], tl.int32)
    for start in range(0, column_tiles, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        flag = tl.load(flags + tile[None, :], mask=present[:, None] & (tile < column_tiles)[None, :], other=0)
        here = (tl.max(flag.to(tl.int32), 0) > 0) & (tile * LIVE < stop) & (tile * LIVE + LIVE > first)
        inner = (tile * LIVE >= inner_first) & (tile * LIVE + LIVE <= inner_stop) & (full > 0)
        edges, inners = _append(list_, column_tiles, tile, here, inner, edges, inners)
    tl.store(counts + tl.cast(tl.program_id(0), tl.int64) * 2, edges)
    tl.store(counts + tl.cast(tl.program_id(0), tl.int64) * 2 + 1, inners)


@triton.jit(do_not_specialize=["heads", "rows", "columns"])
def column_lists_kernel(live, limits, lists, counts, heads, rows, columns, BLOCK_N: tl.constexpr):
    """One program per block of keys: its tiles of query rows. Those with a row that sees nothing count as edges."""
    row_tiles, column_tiles = tl.cdiv(rows, LIVE), tl.cdiv(columns, LIVE)
    blocks = tl.cdiv(columns, BLOCK_N)
    pair, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    PARTS: tl.constexpr = BLOCK_N // LIVE
    column_tile = block * PARTS + tl.arange(0, PARTS)
    low, high = block * BLOCK_N, block * BLOCK_N + BLOCK_N
    list_ = lists + tl.cast(tl.program_id(0), tl.int64) * row_tiles
    edges = tl.zeros([], tl.int32)
    inners = tl.zeros([], tl.int32)
    for start in range(0, row_tiles, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        present = tile < row_tiles
        flags = (
            live + (tl.cast(pair, tl.int64) * row_tiles + tile[:, None]) * column_tiles + column_tile[None, :]
        )
        flag = tl.load(flags, mask=present[:, None] & (column_tile < column_tiles)[None, :], other=0)
        at = limits + (tl.cast(pair // heads, tl.int64) * row_tiles + tile) * LIMITS
        first = tl.load(at, mask=present, other=0x7FFFFFFF)
        stop = tl.load(at + 1, mask=present, other=0)
        inner_first = tl.load(at + 2, mask=present, other=0x7FFFFFFF)
        inner_stop = tl.load(at + 3, mask=present, other=0)
        full = tl.load(at + 4, mask=present, other=0)
        here = (tl.max(flag.to(tl.int32), 1) > 0) & (low < stop) & (high > first)
        inner = (inner_first <= low) & (high <= inner_stop) & (full > 0)
        edges, inners = _append(list_, row_tiles, tile, here, inner, edges, inners)
    tl.store(counts + tl.cast(tl.program_id(0), tl.int64) * 2, edges)
    tl.store(counts + tl.cast(tl.program_id(0), tl.int64) * 2 + 1, inners)
