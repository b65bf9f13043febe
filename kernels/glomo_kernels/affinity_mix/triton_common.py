"""What the Triton kernels of affinity_mix share: tiles of a matrix, roots of the weights, spans of a block.

A kernel works on blocks of query rows and on tiles of keys. Tensors are [B, H, T, width] with any strides but a
unit one in the last dimension; `width` is padded with zeros to a power of two, PADDED. Scores and all that
follows from them are float32.
"""

# mypy: ignore-errors
# (Triton's language looks like Python and is not: its values have no Python types.)

import triton
import triton.language as tl

from glomo_kernels import scores

EPSILON = tl.constexpr(scores.EPSILON)
LIVE = tl.constexpr(scores.LIVE)
# Numbers that differ from batch to batch. A kernel compiled for each class of them (odd, multiple of 16) would stall
# a step for seconds whenever a new class comes.
NOT_SPECIALIZED = ["heads", "rows", "columns", "bucket"]
# Flags of this many tiles are collected in the bits of one integer per row.
GROUP = tl.constexpr(32)
# Of the powers of two by which rows are scaled in float16: its square is finite.
LARGEST_SCALE = tl.constexpr(2.0**63)


@triton.jit
def largest_power(value):
    """1 / (the largest power of two that is not above value); 2^127 for zero. value float32, not negative"""
    exponent = value.to(tl.int32, bitcast=True) & 0x7F800000
    return (0x7F000000 - exponent).to(tl.float32, bitcast=True)


@triton.jit
def matrix(x, sample, head, step_b, step_h):
    """Where `load_rows` finds the rows of one sample and head: a pointer, or (descriptor, sample, head)."""
    if isinstance(x, tl.tensor):
        place = x + tl.cast(sample, tl.int64) * step_b + tl.cast(head, tl.int64) * step_h
    else:
        place = (x, sample, head)
    return place


@triton.jit
def load_rows(
    base, first, stride, limit, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BOUNDED
):
    """[ROWS, PADDED]: the rows from `first` on, zero behind WIDTH and, if BOUNDED, from row `limit` on.

    base is what `matrix` gave. With a descriptor the copy engine of an sm_90 (TMA) fetches the tile and puts the
    zeros; stride and limit are its own. Else only the step to the first row may pass 2^31 elements; the launcher
    sees to it that a tile does not.
    """
    if isinstance(base, tl.tensor):
        row = tl.arange(0, ROWS)
        column = tl.arange(0, PADDED)
        address = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + column[None, :])
        if BOUNDED and WIDTH < PADDED:
            tile = tl.load(
                address, mask=(first + row < limit)[:, None] & (column < WIDTH)[None, :], other=0.0
            )
        elif BOUNDED:
            tile = tl.load(address, mask=(first + row < limit)[:, None], other=0.0)
        elif WIDTH < PADDED:
            tile = tl.load(address, mask=(column < WIDTH)[None, :], other=0.0)
        else:
            tile = tl.load(address)
    else:
        descriptor, sample, head = base
        tile = descriptor.load([sample, head, first, 0]).reshape(ROWS, PADDED)
    return tile


@triton.jit
def store_rows(
    base, first, stride, limit, value, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    row = tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    address = base + tl.cast(first, tl.int64) * stride + (row[:, None] * stride + column[None, :])
    inside = (first + row < limit)[:, None] & (column < WIDTH)[None, :]
    tl.store(address, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def dot(a, b):
    """a @ b in float32. For float32 input no TF32: its errors are a thousand times those of PyTorch."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def factor(
    base, first, stride, limit,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, BOUNDED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A factor of `products`: (tile [ROWS, PADDED], and where it lies); with CHUNK > 0 the tile is not loaded.

    CHUNK is for float32. Its products are no matrix instructions, and each thread would hold all that it multiplies
    in registers: with 256 columns thousands of them, in memory in the end.
    """
    if CHUNK > 0:
        tile = base
    else:
        tile = load_rows(base, first, stride, limit, ROWS, WIDTH, PADDED, BOUNDED)
    return tile, base, first, stride, limit


@triton.jit
def products(a, b, A: tl.constexpr, B: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """a @ b^T [A, B] float32, of what `factor` gave. With CHUNK > 0 from memory, so many columns at a time."""
    if CHUNK == 0:
        total = dot(a[0], tl.trans(b[0]))
    else:
        total = tl.zeros([A, B], tl.float32)
        for start in range(0, WIDTH, CHUNK):
            column = start + tl.arange(0, CHUNK)
            a_row, b_row = tl.arange(0, A), tl.arange(0, B)
            a_part = tl.load(
                a[1] + tl.cast(a[2], tl.int64) * a[3] + (a_row[:, None] * a[3] + column[None, :]),
                mask=(a[2] + a_row < a[4])[:, None] & (column < WIDTH)[None, :],
                other=0.0,
            )
            b_part = tl.load(
                b[1] + tl.cast(b[2], tl.int64) * b[3] + (b_row[:, None] * b[3] + column[None, :]),
                mask=(b[2] + b_row < b[4])[:, None] & (column < WIDTH)[None, :],
                other=0.0,
            )
            total = tl.dot(a_part, tl.trans(b_part), acc=total, input_precision="ieee")
    return total


@triton.jit
def square_bits(root):
    """The square as an integer: for numbers that are not negative, bits are ordered as the numbers are."""
    return (root * root).to(tl.int32, bitcast=True)


@triton.jit
def roots(score, theta, column, begin, end, cut, last, KIND: tl.constexpr, MASKED: tl.constexpr):
    """r of the weight r^2 (glomo_kernels.scores). Rows and columns may stand either way; the others broadcast.

    cut, last  for kind "topk", from topk_kernel
    """
    if KIND == "relu":
        # A maximum of two numbers drops NaN on a GPU (not in the interpreter) unless told to keep it.
        root = tl.maximum(score - theta, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        root = score
    if MASKED:
        root = tl.where((column >= begin) & (column < end), root, 0.0)
    if KIND == "topk":
        bits = square_bits(root)
        root = tl.where((bits > cut) | ((bits == cut) & (column <= last)), root, 0.0)
    return root


@triton.jit
def load_spans(spans, sample, row, rows):
    """begin, end int32 of query rows `row`; an empty span outside of the matrix. spans [B, Tq, 2] int64"""
    address = spans + (tl.cast(sample, tl.int64) * rows + row) * 2
    begin = tl.load(address, mask=row < rows, other=0).to(tl.int32)
    end = tl.load(address + 1, mask=row < rows, other=0).to(tl.int32)
    return begin, end


@triton.jit
def span_limits(begin, end, columns):
    """(first, stop, inner_first, inner_stop): the union of the spans that are not empty, and their intersection."""
    seen = begin < end
    first = tl.min(tl.where(seen, begin, columns), 0)
    stop = tl.max(tl.where(seen, end, 0), 0)
    inner_first = tl.max(tl.where(seen, begin, 0), 0)
    inner_stop = tl.min(tl.where(seen, end, columns), 0)
    return first, stop, inner_first, inner_stop


@triton.jit
def load_theta(theta, offset, row, rows, THETA: tl.constexpr):
    """float32 thresholds of the rows; 0 without theta. theta [B, H, Tq]"""
    if THETA:
        return tl.load(theta + offset + row, mask=row < rows, other=0.0).to(tl.float32)
    return tl.zeros(row.shape, tl.float32)


@triton.jit
def load_cut(cut, last, offset, row, rows, KIND: tl.constexpr):
    """(cut, last) of `roots` for the rows; zeros for the other kinds. cut, last [B, H, Tq] int32"""
    if KIND == "topk":
        return (
            tl.load(cut + offset + row, mask=row < rows, other=0),
            tl.load(last + offset + row, mask=row < rows, other=0),
        )
    return tl.zeros(row.shape, tl.int32), tl.zeros(row.shape, tl.int32)
