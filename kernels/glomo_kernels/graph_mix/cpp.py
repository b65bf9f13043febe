"""graph_mix in C++ (kernels/csrc/graph_mix.cpp), fused over the components."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glomo_kernels import cpu_extension
from glomo_kernels.cpu_extension import threads
from glomo_kernels.extensions import contiguous
from glomo_kernels.scores import compute_dtype


def why_not(features: Tensor | None = None) -> str | None:
    return cpu_extension.why_not(features)


class _Graphs:
    """The arguments of a `Graphs` in C++, and the tensors that its addresses point into."""

    def __init__(
        self,
        offsets: Tensor,
        columns: Tensor,
        values: Tensor,
        dtype: torch.dtype,
        sizes: tuple[int, int, int, int, int],
    ) -> None:
        batch, components, units, first, count = sizes
        self.alive = contiguous(offsets), contiguous(columns), contiguous(values, dtype)
        self.arguments: Any = cpu_extension.loaded().Graphs(
            is_double=dtype == torch.float64,
            offsets=self.alive[0].data_ptr(),
            columns=self.alive[1].data_ptr(),
            values=self.alive[2].data_ptr(),
            batch=batch,
            components=components,
            units=units,
            first=first,
            count=count,
        )


def forward(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    first: int,
    weights: Tensor,
    features: Tensor,
) -> Tensor:
    """[B, T, D]: sum over the components first .. first + weights.shape[-1]."""
    dtype = compute_dtype(features)
    batch, units, width = features.shape
    count = weights.shape[-1]
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, first, count))
    x, w = contiguous(features, dtype), contiguous(weights, dtype)
    result = torch.empty(batch, units, width, dtype=dtype)
    cpu_extension.loaded().mix(
        graphs.arguments, w.data_ptr(), w.ndim == 3, x.data_ptr(), width, result.data_ptr(), threads()
    )
    return result.to(features.dtype)


def backward(
    grad: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    first: int,
    weights: Tensor,
    features: Tensor,
    want_weights: bool,
    want_features: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and features; an empty tensor for one that is not wanted."""
    dtype = compute_dtype(features)
    batch, units, width = features.shape
    count = weights.shape[-1]
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, first, count))
    dy = contiguous(grad, dtype)
    d_weights, d_features = weights.new_empty(0), features.new_empty(0)
    if want_weights:
        x = contiguous(features, dtype)
        d_per_unit = torch.empty(batch, units, count, dtype=dtype)
        cpu_extension.loaded().mix_backward_weights(
            graphs.arguments, dy.data_ptr(), x.data_ptr(), width, d_per_unit.data_ptr(), threads()
        )
        d_weights = (d_per_unit if weights.ndim == 3 else _sum_rows(d_per_unit.flatten(0, 1))).to(
            weights.dtype
        )
    if want_features:
        w = contiguous(weights, dtype)
        dx = torch.empty(batch, units, width, dtype=dtype)
        cpu_extension.loaded().mix_backward_features(
            graphs.arguments, w.data_ptr(), w.ndim == 3, dy.data_ptr(), width, dx.data_ptr(), threads()
        )
        d_features = dx.to(features.dtype)
    return d_weights, d_features


def _sum_rows(x: Tensor) -> Tensor:
    """[n, C] -> [C] in sums of sums of 64 rows: torch divides one long sum among its threads, and the result would
    depend on their number."""
    while len(x) > 64:
        x = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % 64)).view(-(-len(x) // 64), 64, x.shape[1]).sum(1)
    return x.sum(0)


def apply_forward(
    offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int, count: int, x: Tensor
) -> Tensor:
    """[B, count, T, D]: component first + k applied to x[:, k], or to x[:, 0] if that is all there is."""
    dtype = compute_dtype(x)
    batch, given, units, width = x.shape
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, first, count))
    source = contiguous(x, dtype)
    result = torch.empty(batch, count, units, width, dtype=dtype)
    cpu_extension.loaded().apply(
        graphs.arguments, source.data_ptr(), given != count, width, result.data_ptr(), threads()
    )
    return result.to(x.dtype)


def apply_backward(
    grad: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    first: int,
    count: int,
    shared: bool,
) -> Tensor:
    """Gradient of x: [B, count, T, D], or [B, 1, T, D] if x was shared."""
    dtype = compute_dtype(grad)
    batch, _, units, width = grad.shape
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, first, count))
    dz = contiguous(grad, dtype)
    dx = torch.empty(batch, 1 if shared else count, units, width, dtype=dtype)
    cpu_extension.loaded().apply_backward(
        graphs.arguments, dz.data_ptr(), shared, width, dx.data_ptr(), threads()
    )
    return dx.to(grad.dtype)
