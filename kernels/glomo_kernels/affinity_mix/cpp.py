"""affinity_mix in C++ (kernels/csrc/affinity_mix.cpp): for float32 and float64; bfloat16 where the processor has
instructions for it, other half precision through float32.

Inputs are read where they lie, whatever their strides, as long as the elements of a row are side by side. The
processor's products of bfloat16 take widths that are multiples of 32: others are filled up with zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from glomo_kernels import cpu_extension
from glomo_kernels.cpu_extension import threads, why_not_keys
from glomo_kernels.extensions import KINDS, contiguous, why_not_kind
from glomo_kernels.scores import KEEP, compute_dtype, kept_size, live_shape


def why_not(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    theta: Tensor | None = None,
    spans: Tensor | None = None,
    topk: Tensor | None = None,
    kind: str = "relu",
    stats: bool = False,
    keep: str = "nothing",
) -> str | None:
    return why_not_kind(kind, "C++") or why_not_keys(k) or cpu_extension.why_not(q)


def _rows(tensor: Tensor, dtype: torch.dtype, half: bool) -> Tensor:
    """[B, H, T, D] in `dtype` with the elements of a row side by side."""
    if half and tensor.shape[3] % cpu_extension.HALF_WIDTH:
        return pad(tensor, (0, -tensor.shape[3] % cpu_extension.HALF_WIDTH))
    tensor = tensor.to(dtype)
    if tensor.stride(3) != 1:  # as the gradient of a sum: one number for all
        once = [slice(1 if dim < 3 and stride == 0 else None) for dim, stride in enumerate(tensor.stride())]
        tensor = tensor[tuple(once)].contiguous().expand(tensor.shape)
    return tensor if cpu_extension.in_words(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _cut(result: Tensor, like: Tensor) -> Tensor:
    """In the dtype and the width of an input."""
    if result.dtype == like.dtype and result.shape[3] == like.shape[3]:
        return result
    return result[..., : like.shape[3]].to(like.dtype).contiguous()


def _place(tensor: Tensor) -> tuple[int, int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)


class _Problem:
    """The arguments of a `Mix` in C++, and the tensors that its addresses point into."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        theta: Tensor | None,
        spans: Tensor,
        topk: Tensor | None,
        kind: str,
    ) -> None:
        self.dtype = compute_dtype(q)
        self.half = cpu_extension.has_bfloat16(q)
        self.element = q.dtype if self.half else self.dtype  # of the matrices
        matrices = {name: self.rows(x) for name, x in (("q", q), ("k", k), ("v", v))}
        batch, heads, rows, width = matrices["q"].shape
        vectors = {
            "theta": None if theta is None else contiguous(theta, self.dtype),
            "spans": contiguous(spans.clamp(0, k.shape[2])),  # C++ does not look beyond them
            "topk": None if topk is None else contiguous(topk.clamp(min=1)),
        }
        self.alive = matrices, vectors
        self.values = matrices["v"].shape[3]
        self.arguments: Any = cpu_extension.loaded().Mix(
            **{name: _place(tensor) for name, tensor in matrices.items()},
            **{name: 0 if tensor is None else tensor.data_ptr() for name, tensor in vectors.items()},
            is_double=self.dtype == torch.float64,
            is_half=self.half,
            batch=batch,
            heads=heads,
            rows=rows,
            units=k.shape[2],
            width=width,
            values=self.values,
            kind=KINDS[kind],
        )

    def rows(self, tensor: Tensor) -> Tensor:
        return _rows(tensor, self.element, self.half)

    def empty_like(self, name: str) -> Tensor:
        return torch.empty(self.alive[0][name].shape, dtype=self.element)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    kind: str,
    stats: bool,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the reference; kept are the roots, [B, H, blocks of rows, T, 64], or, where few scores have an edge, a bit
    for each, and a flag per block: kernels/csrc/kept.h."""
    problem = _Problem(q, k, v, theta, spans, topk, kind)
    rows = q.shape[:3]
    mixed = torch.empty(*rows, problem.values, dtype=problem.element)
    norm = torch.empty(rows, dtype=problem.dtype)
    edges = torch.empty(rows if stats else (0,), dtype=torch.int32)
    entropy = torch.empty(rows if stats else (0,), dtype=problem.dtype)
    live = torch.empty(live_shape(q, k), dtype=torch.uint8)
    kept = torch.empty(kept_size(q, k, keep), dtype=problem.dtype)
    addresses = [x.data_ptr() if x.numel() else 0 for x in (mixed, norm, live, edges, entropy, kept)]
    cpu_extension.loaded().affinity_mix(problem.arguments, *addresses, KEEP.index(keep), threads())
    return _cut(mixed, v), norm, edges, entropy, live, kept


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor | None,
    spans: Tensor,
    topk: Tensor | None,
    mixed: Tensor,
    norm: Tensor,
    live: Tensor,
    kept: Tensor,
    kind: str,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and theta (empty without theta)."""
    problem = _Problem(q, k, v, theta, spans, topk, kind)
    grad, norm = problem.rows(grad), contiguous(norm)
    live, kept = contiguous(live), contiguous(kept)
    dq, dk, dv = (problem.empty_like(name) for name in "qkv")
    dtheta = torch.empty((0,) if theta is None else theta.shape, dtype=problem.dtype)
    cpu_extension.loaded().affinity_mix_backward(
        problem.arguments,
        _place(grad),
        *(x.data_ptr() if x.numel() else 0 for x in (norm, live, kept)),
        KEEP.index(keep),
        *(x.data_ptr() if x.numel() else 0 for x in (dq, dk, dv, dtheta)),
        threads(),
    )
    dtheta = dtheta if theta is None else dtheta.to(theta.dtype)
    return _cut(dq, q), _cut(dk, k), _cut(dv, v), dtheta
