"""graph_mix in CUDA (kernels/csrc/cuda/graph_mix.cu), fused over the components."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glomo_kernels import cuda_extension
from glomo_kernels.cuda_extension import TYPES, address, transposed
from glomo_kernels.extensions import contiguous
from glomo_kernels.graph_mix.products import layerwise
from glomo_kernels.scores import compute_dtype


def why_not(features: Tensor | None = None) -> str | None:
    return cuda_extension.why_not(features)


class _Graphs:
    """`count` components, from `first` on, of a batch of graphs with `components` per sample."""

    def __init__(
        self,
        offsets: Tensor,
        columns: Tensor,
        values: Tensor,
        dtype: torch.dtype,
        sizes: tuple[int, int, int, int, int],
    ) -> None:
        self.offsets, self.columns = contiguous(offsets), contiguous(columns)
        self.values = contiguous(values, dtype)
        self.batch, self.components, self.units, self.first, self.count = sizes

    def arguments(self, x: Tensor, *, apart: bool, shared: bool, weights: Tensor | None = None) -> Any:
        """For the kernel. apart: a result per component, instead of their sum; shared: whether x [.., T, D] is the
        same for all components of a sample, or each has its own."""
        return cuda_extension.loaded().Combine(
            type=TYPES[x.dtype],
            offsets=self.offsets.data_ptr(),
            sources=self.columns.data_ptr(),
            values=self.values.data_ptr(),
            weights=address(weights),
            per_unit=weights is not None and weights.ndim == 3,
            x=x.data_ptr(),
            shared=shared,
            batch=self.batch,
            outer=self.count if apart else 1,
            inner=1 if apart else self.count,
            components=self.components,
            first=self.first,
            units=self.units,
            source_rows=self.units,
            width=x.shape[-1],
        )

    def chosen_edges(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of all chosen edges: sample, component, unit, column (int64) and value, in the order of the graph."""
        batch, units = self.batch, self.units
        rows = torch.arange(batch * self.count * units, device=self.offsets.device)
        counts = self.offsets.diff()
        if self.count == self.components:
            row = torch.repeat_interleave(rows, counts, output_size=self.columns.numel())
            columns, values = self.columns, self.values
        else:
            shape = (batch, self.components, units)
            chosen = slice(self.first, self.first + self.count)
            starts = self.offsets[:-1].view(shape)[:, chosen].flatten()
            counts = counts.view(shape)[:, chosen].flatten()
            row = torch.repeat_interleave(rows, counts)
            before = counts.cumsum(0) - counts
            edge = (starts - before)[row] + torch.arange(len(row), device=row.device)
            columns, values = self.columns[edge], self.values[edge]
        group, unit = row // units, row % units
        return group // self.count, group % self.count, unit, columns.long(), values

    def combine_transposed(
        self, groups: int, keys: Tensor, sources: Tensor, values: Tensor, x: Tensor
    ) -> Tensor:
        """[groups, T, D]: sums of values[e] * x[group, sources[e]] over the edges of each key, group * T + column.

        groups: batch or batch * count.  x [groups, rows, D], or [batch, rows, D], the same for a sample's groups.
        """
        starts, order = transposed(keys, groups * self.units)
        per_sample = groups // max(1, self.batch)
        sources, values = sources[order].to(torch.int32), values[order]
        result = torch.empty(groups, self.units, x.shape[-1], dtype=x.dtype, device=x.device)
        arguments = cuda_extension.loaded().Combine(
            type=TYPES[x.dtype],
            offsets=starts.data_ptr(),
            sources=sources.data_ptr(),
            values=values.data_ptr(),
            x=x.data_ptr(),
            shared=len(x) != groups,
            batch=self.batch,
            outer=per_sample,
            components=per_sample,
            units=self.units,
            source_rows=x.shape[1],
            width=x.shape[2],
        )
        cuda_extension.loaded().combine(arguments, result.data_ptr(), False, cuda_extension.stream(x))
        return result


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
    with cuda_extension.guard(features):
        dtype = compute_dtype(features)
        batch, units, width = features.shape[0], *features.shape[-2:]
        graphs = _Graphs(
            offsets, columns, values, dtype, (batch, components, units, first, weights.shape[-1])
        )
        x, w = contiguous(features), contiguous(weights, dtype)
        result = x.new_empty(batch, units, width)
        arguments = graphs.arguments(x, apart=False, shared=x.ndim == 3, weights=w)
        cuda_extension.loaded().combine(arguments, result.data_ptr(), False, cuda_extension.stream(x))
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
    """Gradients of weights and features; an empty tensor for one that is not wanted."""
    with cuda_extension.guard(features):
        dtype = compute_dtype(features)
        batch, units = features.shape[0], features.shape[-2]
        count, shared = weights.shape[-1], features.ndim == 3
        graphs = _Graphs(offsets, columns, values, dtype, (batch, components, units, first, count))
        dy = contiguous(grad, features.dtype)
        d_weights, d_features = weights.new_empty(0), features.new_empty(0)
        if want_weights:
            x = contiguous(features)
            d_per_unit = torch.empty(batch, units, count, dtype=dtype, device=x.device)
            arguments = graphs.arguments(x, apart=False, shared=shared)
            cuda_extension.loaded().combine_weights(
                arguments, dy.data_ptr(), d_per_unit.data_ptr(), cuda_extension.stream(x)
            )
            d_weights = (d_per_unit if weights.ndim == 3 else d_per_unit.sum((0, 1))).to(weights.dtype)
        if want_features:
            sample, component, unit, column, value = graphs.chosen_edges()
            w = contiguous(weights, dtype)
            factor = w[component] if w.ndim == 1 else w[sample, unit, component]
            group, groups = (sample, batch) if shared else (sample * count + component, batch * count)
            dx = graphs.combine_transposed(groups, group * units + column, unit, factor * value, dy)
            d_features = dx.view(features.shape)
        return d_weights, d_features


def apply_forward(
    offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int, count: int, x: Tensor
) -> Tensor:
    """[B, count, T, D]: component first + k applied to x[:, k], or to x[:, 0] if that is all there is."""
    with cuda_extension.guard(x):
        batch, given, units, width = x.shape
        sizes = (batch, components, units, first, count)
        graphs = _Graphs(offsets, columns, values, compute_dtype(x), sizes)
        source = contiguous(x)
        result = torch.empty(batch, count, units, width, dtype=x.dtype, device=x.device)
        arguments = graphs.arguments(source, apart=True, shared=given != count)
        cuda_extension.loaded().combine(arguments, result.data_ptr(), False, cuda_extension.stream(x))
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
    with cuda_extension.guard(grad):
        batch, _, units, width = grad.shape
        sizes = (batch, components, units, first, count)
        graphs = _Graphs(offsets, columns, values, compute_dtype(grad), sizes)
        dz = contiguous(grad)
        sample, component, unit, column, value = graphs.chosen_edges()
        if shared:
            group, source, groups = sample, component * units + unit, batch
        else:
            group, source, groups = sample * count + component, unit, batch * count
        rows = dz.view(groups, count * units if shared else units, width)
        dx = graphs.combine_transposed(groups, group * units + column, source, value, rows)
        return dx.view(batch, 1 if shared else count, units, width)


forward, backward = layerwise(_mix, _mix_backward, apply_forward, apply_backward)
