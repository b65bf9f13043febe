"""graph_mix in plain PyTorch: one sample at a time, its mixed graph M = sum_c w_c P_c dense."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels.graph_mix.products import layerwise
from glomo_kernels.scores import compute_dtype


def why_not(*arguments: object) -> str | None:
    return None


def _edges(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    sample: int,
    components: int,
    first: int,
    count: int,
    units: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of `count` components of one sample: the row c * T + i of each edge, its column and its value."""
    row = (sample * components + first) * units
    bounds = offsets[row : row + count * units + 1]
    chosen = slice(int(bounds[0]), int(bounds[-1]))
    return torch.repeat_interleave(bounds.diff()), columns[chosen].long(), values[chosen]


def _dense(size: int, index: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, index, values)


def _mixture(row: Tensor, column: Tensor, value: Tensor, weights: Tensor, shared: bool) -> Tensor:
    """From the edges of a sample and its weights [T, C]: M [T, T], or its terms w_c P_c [C, T, T] if not `shared`."""
    units, count = weights.shape
    component, unit = row // units, row % units
    weighted = value * weights[unit, component]
    if shared:
        return _dense(units * units, unit * units + column, weighted).view(units, units)
    return _dense(count * units * units, row * units + column, weighted).view(count, units, units)


def _mix(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    first: int,
    weights: Tensor,
    features: Tensor,
) -> Tensor:
    """[B, T, D]: sum over the components first .. first + weights.shape[-1]; features [B, T, D], or each component's
    own, [B, count, T, D]."""
    batch, units, width = features.shape[0], *features.shape[-2:]
    count, dtype, shared = weights.shape[-1], compute_dtype(features), features.ndim == 3
    per_unit = weights.to(dtype).expand(batch, units, count)
    result = features.new_empty(batch, units, width)
    for b in range(batch):
        row, column, value = _edges(offsets, columns, values.to(dtype), b, components, first, count, units)
        terms = _mixture(row, column, value, per_unit[b], shared) @ features[b].to(dtype)
        result[b] = terms if shared else terms.sum(0)
    return result


def _mix_backward(
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
    """dw_ic = sum_j P_c[i, j] (dy_i . H_j) and dH = M^T dy, or dH_c = (w_c P_c)^T dy of a component's own; an empty
    tensor for one that is not wanted."""
    batch, units = features.shape[0], features.shape[-2]
    count, dtype, shared = weights.shape[-1], compute_dtype(features), features.ndim == 3
    per_unit = weights.to(dtype).expand(batch, units, count)
    d_per_unit = weights.new_empty((batch, units, count) if want_weights else (0,), dtype=dtype)
    d_features = features.new_empty(features.shape if want_features else (0,))
    for b in range(batch):
        row, column, value = _edges(offsets, columns, values.to(dtype), b, components, first, count, units)
        d_result = grad[b].to(dtype)
        if want_weights:
            component, unit = row // units, row % units
            products = d_result @ features[b].to(dtype).mT
            products = products[unit, column] if shared else products[component, unit, column]
            d_per_unit[b] = _dense(units * count, unit * count + component, products * value).view(
                units, count
            )
        if want_features:
            d_features[b] = _mixture(row, column, value, per_unit[b], shared).mT @ d_result
    if want_weights and weights.ndim == 1:
        d_per_unit = d_per_unit.sum((0, 1))
    return d_per_unit.to(weights.dtype), d_features


def apply_forward(
    offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int, count: int, x: Tensor
) -> Tensor:
    """[B, count, T, D]: component first + k applied to x[:, k], or to x[:, 0] if that is all there is."""
    batch, _, units, width = x.shape
    dtype = compute_dtype(x)
    result = x.new_empty(batch, count, units, width)
    for b in range(batch):
        row, column, value = _edges(offsets, columns, values.to(dtype), b, components, first, count, units)
        graphs = _dense(count * units * units, row * units + column, value).view(count, units, units)
        result[b] = graphs @ x[b].to(dtype)
    return result


def apply_backward(
    grad: Tensor,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    first: int,
    count: int,
    shared: bool = False,
) -> Tensor:
    """Gradient of x: [B, count, T, D], or [B, 1, T, D] if x was shared."""
    batch, _, units, width = grad.shape
    dtype = compute_dtype(grad)
    result = grad.new_empty(batch, 1 if shared else count, units, width)
    for b in range(batch):
        row, column, value = _edges(offsets, columns, values.to(dtype), b, components, first, count, units)
        graphs = _dense(count * units * units, row * units + column, value).view(count, units, units)
        d_x = graphs.transpose(-1, -2) @ grad[b].to(dtype)
        result[b] = d_x.sum(0, keepdim=True) if shared else d_x
    return result


forward, backward = layerwise(_mix, _mix_backward, apply_forward, apply_backward)
