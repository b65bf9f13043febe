"""affinity_graph: the weights that affinity_mix mixes with, as a sparse graph."""

from typing import Any

import torch
from torch import Tensor

from glomo_kernels import checks
from glomo_kernels.dispatch import run
from glomo_kernels.graph import SparseGraph
from glomo_kernels.registration import operator
from glomo_kernels.scores import compute_dtype
from glomo_kernels.spans import make_spans

OP = "affinity_graph"


def affinity_graph(
    q: Tensor,
    k: Tensor,
    theta: Tensor | float | None = None,
    *,
    kind: str = "relu",
    lengths: Tensor | None = None,
    causal: bool = True,
    segments: Tensor | None = None,
    topk: int | Tensor | None = None,
    keep: int | None = None,
    renormalise: bool = True,
) -> SparseGraph:
    """The positive weights G_ij of `affinity_mix` with the same arguments, as compressed rows.

    q      [B, H, T, Dg]   float16 | bfloat16 | float32 | float64
    k      [B, H, T, Dg]   dtype of q
    theta, kind, lengths, causal, segments, topk   as in `affinity_mix`
    keep   the number of edges kept per row, the largest weights (ties: the lowest column); None keeps all
    renormalise  divide by the sum of the kept weights; False: by the sum over all of the row
    ->     SparseGraph of shape (B, H, T): weights float32 (float64 for float64 input). Gradients flow to q, k
           and theta through the weights; the choice of edges itself has none. Never T x T in memory.
    """
    q, k = checks.alike(q, k)
    theta = checks.check_scores(OP, q, k, theta, kind)
    if k.shape != q.shape:
        raise ValueError(f"{OP}: k must be {checks.shape(q)} like q, got {checks.shape(k)}")
    batch, heads, units, _ = q.shape
    kept = 0
    if keep is not None:
        kept = checks.check_whole(OP, "keep", keep, "a whole number from 1 on, or None for all edges", low=1)
    checks.check_bool(OP, "causal", causal)
    checks.check_bool(OP, "renormalise", renormalise)
    checks.check_lengths(OP, lengths, batch, units, q.device)
    counts = checks.check_topk(OP, topk, kind, batch, q.device)
    checks.check_segments(OP, segments, batch, units, q.device)
    spans = make_spans(
        batch, units, q.device, lengths=lengths, causal=causal, positions=None, segments=segments
    )
    weights, offsets, columns = _forward(q, k, theta, spans, counts, kind, kept, renormalise)
    return SparseGraph(offsets, columns, weights, (batch, heads, units))


@operator("affinity_graph")
def _forward(
    q: Tensor,
    k: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    keep: int,
    renormalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, offsets, columns); keep = 0 keeps every edge."""
    if q.shape[2] >= 2**31:  # here, as a comparison while tracing would bind sizes that may vary
        raise ValueError(f"{OP}: T must be below 2^31 (columns are int32), got {q.shape[2]}")
    arguments = (q, k, theta, spans, topk, kind, keep, renormalise)
    result: tuple[Tensor, Tensor, Tensor] = run(OP, "forward", q.device, arguments, *arguments)
    return result


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    keep: int,
    renormalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    edges = torch.library.get_ctx().new_dynamic_size()
    batch, heads, units, _ = q.shape
    return (
        q.new_empty(edges, dtype=compute_dtype(q)),
        q.new_empty(batch * heads * units + 1, dtype=torch.int64),
        q.new_empty(edges, dtype=torch.int32),
    )


@operator("affinity_graph_backward")
def _backward(
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
    """Gradients of q, k and theta (an empty tensor without theta) from that of the weights [E]."""
    result: tuple[Tensor, Tensor, Tensor] = run(
        OP,
        "backward",
        q.device,
        (q, k, theta, spans, topk, kind, keep, renormalise),
        *(grad, q, k, theta, spans, topk, offsets, columns, weights, kind, keep, renormalise),
    )
    return result


@_backward.register_fake
def _(
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
    dtheta = q.new_empty(0) if theta is None else theta.new_empty(theta.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), dtheta


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, theta, spans, topk, ctx.kind, ctx.keep, ctx.renormalise = inputs
    ctx.save_for_backward(q, k, theta, spans, topk, *output)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, theta, spans, topk, weights, offsets, columns = ctx.saved_tensors
    dq, dk, dtheta = _backward(
        *(grad, q, k, theta, spans, topk, offsets, columns, weights, ctx.kind, ctx.keep, ctx.renormalise)
    )
    return dq, dk, None if theta is None else dtheta, None, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup)
_backward.refuse_derivative(OP)
