"""affinity_graph in CUDA (kernels/csrc/cuda): count edges, scan, fill; gradients through sparse products.

Scores exist as tiles in the fast memory of the device only; every pass computes them again, with the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glomo_kernels import cuda_extension
from glomo_kernels.cuda_extension import TYPES, address, transposed
from glomo_kernels.extensions import KINDS, contiguous, why_not_kind
from glomo_kernels.scores import compute_dtype

ALIGNMENT = 16  # bytes: rows of q and k are copied in pieces of this size
# Entries of the rows that are handled at a time where a gradient reaches more than the edges.
WIDE_ENTRIES = 1 << 25
Edges = tuple[Tensor, Tensor]  # offsets, columns


def why_not(
    q: Tensor | None = None,
    k: Tensor | None = None,
    theta: Tensor | None = None,
    spans: Tensor | None = None,
    topk: Tensor | None = None,
    kind: str = "relu",
    keep: int = 0,
    renormalise: bool = True,
) -> str | None:
    reason = cuda_extension.why_not(q) or why_not_kind(kind, "CUDA")
    if reason is None and q is not None and q.shape[2] > 2**30:
        reason = f"T must be at most 2^30, got {q.shape[2]}"
    return reason


class _Cut(NamedTuple):
    """Which squares of a row are kept; None: every positive one. For the kernels, see kernels.h."""

    limits: Tensor | None
    last: Tensor | None

    def argument(self) -> Any:
        return cuda_extension.loaded().Cut(address(self.limits), address(self.last))


class _Problem:
    """The arguments of an `Affinity` in C++ for the query rows first .. first + rows, and the tensors behind them."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        theta: Tensor | None,
        spans: Tensor,
        topk: Tensor | None,
        kind: str,
    ) -> None:
        self.dtype = compute_dtype(q)
        self.type = TYPES[q.dtype]
        self.batch, self.heads, self.units, self.width = q.shape
        self.q, self.k = _aligned(q), _aligned(k)
        self.theta = None if theta is None else contiguous(theta, self.dtype)
        self.spans = contiguous(spans)
        self.topk = None if topk is None else contiguous(topk)
        self.kind = kind
        self.stream = cuda_extension.stream(q)
        self.rows_of(0, self.units)

    def rows_of(self, first: int, rows: int) -> None:
        self.first, self.rows = first, rows
        self.arguments: Any = cuda_extension.loaded().Affinity(
            type=self.type,
            q=address(self.q),
            k=address(self.k),
            theta=address(self.theta),
            spans=address(self.spans),
            batch=self.batch,
            heads=self.heads,
            units=self.units,
            width=self.q.shape[-1],
            first=first,
            rows=rows,
            kind=KINDS[self.kind],
        )

    def empty(self, size: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(size, dtype=dtype or self.dtype, device=self.q.device)

    def all_rows(self) -> int:
        return self.batch * self.heads * self.rows

    def cut(self, keep: int) -> _Cut:
        """Behind the largest squares of each row: `keep` of them (0: all) and, for kind topk, topk[b]."""
        if keep == 0 and self.topk is None:
            return _Cut(None, None)
        limits, last = self.empty(self.all_rows()), self.empty(self.all_rows(), torch.int32)
        cuda_extension.loaded().select(
            self.arguments, keep, address(self.topk), limits.data_ptr(), last.data_ptr(), self.stream
        )
        return _Cut(limits, last)

    def edges(self, edges: _Cut, whole: _Cut, weights: bool) -> tuple[Tensor, Edges]:
        """(values, edges): the weights, normalised by the squares of `whole`, or the roots r_ij."""
        counts = torch.zeros(self.all_rows() + 1, dtype=torch.int64, device=self.q.device)
        totals = self.empty(self.all_rows(), torch.float64)
        cuda_extension.loaded().count(
            self.arguments,
            edges.argument(),
            whole.argument(),
            counts[1:].data_ptr(),
            totals.data_ptr(),
            self.stream,
        )
        offsets = counts.cumsum(0)
        size = int(offsets[-1])  # the only wait for the device: to know how much memory the edges take
        columns, values = self.empty(size, torch.int32), self.empty(size)
        cuda_extension.loaded().fill(
            self.arguments,
            edges.argument(),
            address(totals if weights else None),
            offsets.data_ptr(),
            columns.data_ptr(),
            values.data_ptr(),
            self.stream,
        )
        return values, (offsets, columns)

    def roots(self, edges: Edges) -> Tensor:
        values = self.empty(edges[1].numel())
        cuda_extension.loaded().roots(
            self.arguments, edges[0].data_ptr(), edges[1].data_ptr(), values.data_ptr(), self.stream
        )
        return values

    def combine(self, edges: Edges, values: Tensor, x: Tensor, rows: int, wide: bool) -> Tensor:
        """sum over the edges of each of the B*H*rows rows of values[e] * x[sources[e]], x [B, H, T, width]."""
        result = torch.empty(
            self.batch, self.heads, rows, x.shape[-1], dtype=self.dtype if wide else x.dtype, device=x.device
        )
        arguments = cuda_extension.loaded().Combine(
            type=self.type,
            offsets=edges[0].data_ptr(),
            sources=edges[1].data_ptr(),
            values=values.data_ptr(),
            x=x.data_ptr(),
            batch=self.batch * self.heads,
            units=rows,
            source_rows=self.units,
            width=x.shape[-1],
        )
        cuda_extension.loaded().combine(arguments, result.data_ptr(), wide, self.stream)
        return result

    def transpose(self, edges: Edges) -> tuple[Tensor, Edges]:
        """(order, edges by key): for each key of each head the query units that look at it, ascending."""
        rows = torch.arange(self.all_rows(), device=self.q.device)
        row = torch.repeat_interleave(rows, edges[0].diff(), output_size=edges[1].numel())
        head, unit = row // self.rows, row % self.rows + self.first
        starts, order = transposed(head * self.units + edges[1], self.batch * self.heads * self.units)
        return order, (starts, unit[order].to(torch.int32))


def _aligned(x: Tensor) -> Tensor:
    """The tensor in row-major order, rows filled up with zeros to a multiple of 16 bytes."""
    step = ALIGNMENT // x.element_size()
    missing = -x.shape[-1] % step if x.shape[-1] else step
    filled = contiguous(F.pad(x, (0, missing)) if missing else x)  # a pad of nothing copies
    return filled if filled.data_ptr() % ALIGNMENT == 0 else filled.clone()


def forward(
    q: Tensor,
    k: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    keep: int,
    renormalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights [E], offsets int64 [B*H*T + 1], columns int32 [E]); keep = 0 keeps every edge."""
    with cuda_extension.guard(q):
        problem = _Problem(q, k, theta, spans, topk, kind)
        kept = problem.cut(keep)
        whole = kept if renormalise or keep == 0 else problem.cut(0)
        weights, (offsets, columns) = problem.edges(kept, whole, weights=True)
        return weights, offsets, columns


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    offsets: Tensor,
    columns: Tensor,
    weights: Tensor,
    kind: str,
    keep: int,
    renormalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and theta (empty without theta), each a sum in a fixed order.

    If the weights were normalised by their own sum, the gradient of the scores lives on the edges. If by the sum
    over all of the row, it lives on every positive score: these are made for a few rows at a time.
    """
    with cuda_extension.guard(q):
        problem = _Problem(q, k, theta, spans, topk, kind)
        kept = (contiguous(offsets), contiguous(columns))
        pair = contiguous(weights), contiguous(grad, problem.dtype)
        if renormalise or keep == 0:
            dq, dk, dtheta = _slopes(problem, kept, pair, kept, problem.roots(kept), wide=False)
        else:
            dq, dk, dtheta = _backward_in_parts(problem, kept, pair)
        dq, dk = dq[..., : problem.width].to(q.dtype), dk[..., : problem.width].to(k.dtype)
        return (
            dq.contiguous(),
            dk.contiguous(),
            q.new_empty(0) if theta is None else dtheta.view(theta.shape).to(theta.dtype),
        )


def _slopes(
    problem: _Problem,
    edges: Edges,
    pair: tuple[Tensor, Tensor],
    whole: Edges,
    roots: Tensor,
    *,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq [B, H, rows, width], dk [B, H, T, width] and dtheta [B*H*rows] (empty without theta) from the roots r_ij at
    `whole`.

    edges, pair  the edges of the graph in these rows, their weights and gradients
    wide         results in the compute dtype, not that of q
    """
    slopes, with_theta = torch.empty_like(roots), problem.theta is not None
    dtheta = problem.empty(problem.all_rows() if with_theta else 0)
    cuda_extension.loaded().slopes(
        problem.type,
        problem.all_rows(),
        cuda_extension.loaded().Rows(*map(address, edges)),
        *map(address, pair),
        cuda_extension.loaded().Rows(*map(address, whole)),
        roots.data_ptr(),
        slopes.data_ptr(),
        address(dtheta if with_theta else None),
        problem.stream,
    )
    dq = problem.combine(whole, slopes, problem.k, problem.rows, wide)
    order, by_key = problem.transpose(whole)
    dk = problem.combine(by_key, slopes[order], problem.q, problem.units, wide)
    return dq, dk, dtheta


def _backward_in_parts(
    problem: _Problem, edges: Edges, pair: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where every positive score of a row has a slope; WIDE_ENTRIES of them at a time."""
    batch, heads, units = problem.batch, problem.heads, problem.units
    shape = (batch, heads, units)
    step = max(64, WIDE_ENTRIES // max(1, batch * heads * units) // 64 * 64)
    dq = problem.empty(problem.q.numel()).view(problem.q.shape)
    dk = torch.zeros_like(dq)
    dtheta = problem.empty(batch * heads * units).view(shape)
    row_starts = edges[0][:-1].view(shape)
    for first in range(0, units, step):
        problem.rows_of(first, min(step, units - first))
        here = slice(first, first + problem.rows)
        counts = edges[0].diff().view(shape)[:, :, here].flatten()
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        index = torch.repeat_interleave(row_starts[:, :, here].flatten() - offsets[:-1], counts)
        index += torch.arange(len(index), device=index.device)
        every = problem.cut(0)
        roots, whole = problem.edges(every, every, weights=False)
        edges_here, pair_here = (offsets, edges[1][index]), (pair[0][index], pair[1][index])
        dq_here, dk_here, dtheta_here = _slopes(problem, edges_here, pair_here, whole, roots, wide=True)
        dq[:, :, here] = dq_here
        dk += dk_here
        if problem.theta is not None:
            dtheta[:, :, here] = dtheta_here.view(batch, heads, problem.rows)
    return dq, dk, dtheta
