"""Checks of a SparseGraph that somebody else may have made, and of what goes with it; errors name the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from glomo_kernels import checks
from glomo_kernels.graph import SparseGraph


def check_floating(op: str, name: str, tensor: Tensor, graph: SparseGraph) -> None:
    if tensor.dtype not in checks.FLOATING or tensor.device != graph.weights.device:
        raise ValueError(
            f"{op}: {name} must be {checks.FLOATING_NAMES} on {graph.weights.device} like the graph, "
            f"got {tensor.dtype} on {tensor.device}"
        )


def check_graph(op: str, graph: SparseGraph) -> None:
    if not isinstance(graph, SparseGraph):
        raise ValueError(f"{op}: graph must be a SparseGraph, got {type(graph).__name__}")
    checks.check_tensors(op, **{f"graph.{name}": getattr(graph, name) for name in ("columns", "weights")})
    if not isinstance(graph.shape, (tuple, list)) or len(graph.shape) != 3:
        raise ValueError(f"{op}: graph.shape must be (B, C, T), got {graph.shape}")
    sizes = "whole numbers from 0 on"
    batch, components, units = (checks.check_whole(op, "graph.shape", n, sizes, low=0) for n in graph.shape)
    checks.check_integers(
        op, "graph.offsets", graph.offsets, ((batch * components * units + 1,),), graph.weights.device
    )
    if graph.weights.dtype not in checks.FLOATING or graph.weights.ndim != 1:
        raise ValueError(
            f"{op}: graph.weights must be {checks.FLOATING_NAMES} of one dimension, "
            f"got {graph.weights.dtype} {checks.shape(graph.weights)}"
        )
    if graph.columns.device != graph.weights.device:
        raise ValueError(
            f"{op}: graph.columns must be on {graph.weights.device} like graph.weights, got {graph.columns.device}"
        )
    if graph.columns.dtype != torch.int32 or graph.columns.shape != graph.weights.shape:
        raise ValueError(
            f"{op}: graph.columns must be int32 of the shape of graph.weights {checks.shape(graph.weights)}, "
            f"got {graph.columns.dtype} {checks.shape(graph.columns)}"
        )
    if graph.weights.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: graph.weights requires a gradient, but graphs are constants here; pass graph.detach()"
        )


def check_edges(op: str, offsets: Tensor, columns: Tensor, units: int) -> None:
    """Refuse edges that would read outside of memory; on CPU only, elsewhere it would stall the device."""
    if offsets.device.type != "cpu":
        return
    edges = columns.numel()
    falls = offsets.diff() < 0
    if int(offsets[0]) != 0 or int(offsets[-1]) != edges or bool(falls.any()):
        fall = f", falling within row {int(falls.nonzero()[0])}" if falls.any() else ""
        raise ValueError(
            f"{op}: graph.offsets must rise from 0 to the number of edges {edges}, "
            f"got {int(offsets[0])}..{int(offsets[-1])}{fall}"
        )
    if edges:
        low, high = (int(x) for x in columns.aminmax())
        if low < 0 or high >= units:
            raise ValueError(f"{op}: graph.columns must lie in 0..{units - 1}, got {low}..{high}")
