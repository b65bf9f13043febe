"""affinity_graph in C++ (kernels/csrc/affinity_graph.cpp): find the edges, scan, place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glomo_kernels import cpu_extension
from glomo_kernels.cpu_extension import threads, why_not_keys
from glomo_kernels.extensions import KINDS, contiguous, why_not_kind
from glomo_kernels.scores import compute_dtype


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
    return why_not_kind(kind, "C++") or why_not_keys(k) or cpu_extension.why_not(q)


class _Problem:
    """The arguments of an `Affinity` in C++, and the tensors that its addresses point into."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        theta: Tensor | None,
        spans: Tensor,
        topk: Tensor | None,
        kind: str,
        keep: int,
        renormalise: bool,
    ) -> None:
        self.dtype = compute_dtype(q)
        self.batch, self.heads, self.units, self.width = q.shape
        inputs: dict[str, Tensor | None] = {
            "q": contiguous(q, self.dtype),
            "k": contiguous(k, self.dtype),
            "theta": None if theta is None else contiguous(theta, self.dtype),
            "spans": contiguous(spans.clamp(0, self.units)),  # C++ does not look beyond them
            "topk": None if topk is None else contiguous(topk.clamp(min=1)),
        }
        self.alive = inputs
        self.arguments: Any = cpu_extension.loaded().Affinity(
            **{name: 0 if tensor is None else tensor.data_ptr() for name, tensor in inputs.items()},
            is_double=self.dtype == torch.float64,
            batch=self.batch,
            heads=self.heads,
            units=self.units,
            width=self.width,
            kind=KINDS[kind],
            keep=keep,
            renormalise=renormalise,
        )


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
    problem = _Problem(q, k, theta, spans, topk, kind, keep, renormalise)
    offsets = torch.zeros(problem.batch * problem.heads * problem.units + 1, dtype=torch.int64)
    found = cpu_extension.loaded().find_edges(problem.arguments, offsets[1:].data_ptr(), threads())
    offsets.cumsum_(0)
    edges = int(offsets[-1])
    columns = torch.empty(edges, dtype=torch.int32)
    weights = torch.empty(edges, dtype=problem.dtype)
    found.place(offsets.data_ptr(), columns.data_ptr(), weights.data_ptr(), threads())
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
    """Gradients of q, k and theta (empty without theta)."""
    problem = _Problem(q, k, theta, spans, topk, kind, keep, renormalise)
    grad, offsets, columns = contiguous(grad, problem.dtype), contiguous(offsets), contiguous(columns)
    weights = contiguous(weights)
    dq, dk = torch.empty(q.shape, dtype=problem.dtype), torch.empty(k.shape, dtype=problem.dtype)
    dtheta = torch.empty((0,) if theta is None else theta.shape, dtype=problem.dtype)
    cpu_extension.loaded().affinity_graph_backward(
        problem.arguments,
        offsets.data_ptr(),
        columns.data_ptr(),
        weights.data_ptr(),
        grad.data_ptr(),
        dq.data_ptr(),
        dk.data_ptr(),
        0 if theta is None else dtheta.data_ptr(),
        threads(),
    )
    return dq.to(q.dtype), dk.to(k.dtype), dtheta if theta is None else dtheta.to(theta.dtype)
