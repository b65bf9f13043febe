"""graph_mix in C++ (kernels/csrc/graph_products.cpp, graph_mix.cpp), fused over the components."""

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

    def mixed(self, heads: int, weights: Tensor, width: int) -> Any:
        """The arguments of a `LayeredMix` of these graphs: `heads` components in a layer; features of `width`. The
        caller keeps `weights`, whose address is in them."""
        return cpu_extension.loaded().LayeredMix(
            graphs=self.arguments,
            heads=heads,
            weights=weights.data_ptr(),
            per_unit=weights.ndim == 3,
            width=width,
        )


def forward(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    heads: int,
    weights: Tensor,
    features: Tensor,
) -> Tensor:
    """[B, T, D]: see graph_mix; heads: components in a layer."""
    dtype = compute_dtype(features)
    batch, units, width = features.shape
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, 0, components))
    x, w = contiguous(features, dtype), contiguous(weights, dtype)
    result = torch.empty(batch, units, width, dtype=dtype)
    problem = graphs.mixed(heads, w, width)
    cpu_extension.loaded().mix(problem, x.data_ptr(), result.data_ptr(), threads())
    return result.to(features.dtype)


def backward(
    grad: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    heads: int,
    weights: Tensor,
    features: Tensor,
    want_weights: bool,
    want_features: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and features; an empty tensor for one that is not wanted."""
    dtype = compute_dtype(features)
    batch, units, width = features.shape
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, 0, components))
    dy, x, w = (contiguous(tensor, dtype) for tensor in (grad, features, weights))
    d_weights = torch.empty((batch, units, w.shape[-1]) if want_weights else (0,), dtype=dtype)
    d_features = torch.empty(features.shape if want_features else (0,), dtype=dtype)
    problem = graphs.mixed(heads, w, width)
    cpu_extension.loaded().mix_backward(
        *(problem, dy.data_ptr(), x.data_ptr(), d_weights.data_ptr(), d_features.data_ptr(), threads())
    )
    if want_weights and weights.ndim == 1:
        d_weights = _sum_rows(d_weights.flatten(0, 1))
    return d_weights.to(weights.dtype), d_features.to(features.dtype)


def _sum_rows(x: Tensor) -> Tensor:
    """[n, C] -> [C] in sums of sums of 64 rows: torch divides one long sum among its threads, and the result would
    depend on their number."""
    while len(x) > 64:
        x = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % 64)).view(-(-len(x) // 64), 64, x.shape[1]).sum(1)
    return x.sum(0)


def apply_forward(
    offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int, count: int, x: Tensor
) -> Tensor:
    """[B, count, T, D]: component first + k applied to x[:, k]."""
    dtype = compute_dtype(x)
    batch, _, units, width = x.shape
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, first, count))
    source = contiguous(x, dtype)
    result = torch.empty(batch, count, units, width, dtype=dtype)
    cpu_extension.loaded().apply(graphs.arguments, source.data_ptr(), width, result.data_ptr(), threads())
    return result.to(x.dtype)


def apply_backward(
    grad: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    first: int,
    count: int,
) -> Tensor:
    """Gradient of x: [B, count, T, D]."""
    dtype = compute_dtype(grad)
    batch, _, units, width = grad.shape
    graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, first, count))
    dz = contiguous(grad, dtype)
    dx = torch.empty(batch, count, units, width, dtype=dtype)
    cpu_extension.loaded().apply_backward(graphs.arguments, dz.data_ptr(), width, dx.data_ptr(), threads())
    return dx.to(grad.dtype)
