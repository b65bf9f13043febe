"""The authors' fusion of graphs with word features in their SQuAD readers, from their state dicts.

How far the two agree: docs/numerics.md. Their options: `condition` (mixture weights per task, or per unit from its
own features), `att_cnt` (mixed graphs per direction), `gate_fuse` (0 concatenation, 1 GRU cell, 2 gate, 3 gate with
products of graphs in the mixture), `uniform_graph` (the mean of the features instead of a graph), `trnn` (graphs on
the states of the task's RNN: always products and a gate).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from glomo_kernels import SparseGraph, graph_mix
from torch import Tensor
from torch.nn import functional as F

from glomo_dist.model.ancestor_options import whole_option
from glomo_dist.runtime.config import MOST
from glomo_dist.runtime.errors import CheckpointError, ConfigError


def fuse(
    state_dict: Mapping[str, Tensor],
    options: Mapping[str, Any],
    graphs: Tensor | None,
    features: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """What the authors' model makes of `features` and the predicted graphs, in evaluation (no dropout).

    state_dict: parameters under the authors' names: `mixt_logits_fw`, `mixt_logits_fw.0.1.weight`, `scales`,
        `gate_layer.*`, `gru_cell.*`; others are not looked at.
    options: `condition`, `att_cnt`, `gate_fuse`, `uniform_graph`, `trnn`, bare or after `config/`.
    graphs: [B, 2 * layers, K, T, T], forward layers then backward ones; None with `uniform_graph`.
    features: [B, T, D], the word vectors (or, with `trnn`, the RNN's states).
    mask: [B, T], 1 for real units; only `uniform_graph` looks at it, graphs of padding are zero already.
    -> [B, T, width]: the output of the gate (gate_fuse 2, 3, trnn) or the GRU cell (1), which their model puts
       beside the features; for gate_fuse 0 the concatenation [features, M_1 features, ...] itself.
    """
    mode, trnn = option(options, "gate_fuse", most=3), option(options, "trnn")
    if option(options, "uniform_graph") and not trnn:
        mixed = [_mean(features, mask)]
    else:
        if graphs is None:
            raise ConfigError("ancestor fuse: graphs are needed unless uniform_graph is set.")
        mixed = _mixtures(state_dict, options, graphs, features, products=bool(trnn) or mode == 3)
    together = torch.cat([features, *mixed], dim=2)
    if trnn or mode >= 2:
        return _gate(state_dict, together)
    if mode == 1:
        return gru_cell(state_dict, "gru_cell", torch.cat(mixed, dim=2), features)
    return together


def option(options: Mapping[str, Any], name: str, default: int = 0, most: int = MOST) -> int:
    """One of the authors' whole-number options or switches, bare or after `config/`."""
    return whole_option(name, options.get(name, options.get(f"config/{name}", default)), 0, most)


def _mean(features: Tensor, mask: Tensor | None) -> Tensor:
    """The masked sum divided by the padded length, for every unit: the authors' uniform graph. [B, T, D]"""
    real = features if mask is None else features * mask.to(features.dtype)[:, :, None]
    return real.mean(dim=1, keepdim=True).expand_as(features)


def _mixtures(
    state_dict: Mapping[str, Tensor],
    options: Mapping[str, Any],
    graphs: Tensor,
    features: Tensor,
    products: bool,
) -> list[Tensor]:
    """scale * (M H) for every mixed graph: forward and backward alternate. Each [B, T, D]."""
    B, both, K, T, _ = graphs.shape
    if both % 2 or features.shape[:2] != (B, T):
        raise ConfigError(
            f"ancestor fuse: graphs must be [B, 2 * layers, K, T, T] and features [B, T, D], got "
            f"{tuple(graphs.shape)} and {tuple(features.shape)}."
        )
    count, conditioned = option(options, "att_cnt", 1), option(options, "condition")
    scales = parameter(state_dict, "scales", 2, count)
    components = (both - 1 if products else both // 2) * K
    directions = [_sparse(half.flatten(1, 2)) for half in graphs.split(both // 2, dim=1)]
    mixed = []
    for i in range(count):
        for d, name in enumerate(("mixt_logits_fw", "mixt_logits_bw")):
            if conditioned:
                logits = linear(state_dict, f"{name}.{i}.1", features)
            else:
                logits = parameter(state_dict, name, count, None)[i]
            if logits.shape[-1] != components:
                raise CheckpointError(
                    f"ancestor state dict: {name} mixes {logits.shape[-1]} graphs, these options and graphs "
                    f"make {components}."
                )
            weights = logits.softmax(dim=-1)
            mixed.append(
                graph_mix(directions[d], weights, features, heads=K if products else None) * scales[d, i]
            )
    return mixed


def _sparse(dense: Tensor) -> SparseGraph:
    """dense [B, C, T, T] -> its non-zero entries."""
    B, C, T, _ = dense.shape
    flat = dense.reshape(B * C * T, T)
    row, column = flat.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=B * C * T)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseGraph(offsets, column.to(torch.int32), flat[row, column], (B, C, T))


def _gate(state_dict: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """linear(x) * sigmoid(gate(x)). [B, T, in] -> [B, T, out]"""
    return linear(state_dict, "gate_layer.linear", x) * linear(state_dict, "gate_layer.gate", x).sigmoid()


def gru_cell(state_dict: Mapping[str, Tensor], name: str, given: Tensor, hidden: Tensor) -> Tensor:
    """One step of the GRU cell `name`: given [..., in], hidden [..., out] -> [..., out]"""
    weights = gru_weights(state_dict, name, "", given.shape[-1], hidden.shape[-1])
    return torch.gru_cell(given.flatten(0, -2), hidden.flatten(0, -2), *weights).view_as(hidden)


def gru_weights(
    state_dict: Mapping[str, Tensor], name: str, end: str, given: int, hidden: int
) -> list[Tensor]:
    """The weights and biases of input and state, in PyTorch's order, with the end of their names."""
    parts = {"weight_ih": (given,), "weight_hh": (hidden,), "bias_ih": (), "bias_hh": ()}
    return [parameter(state_dict, f"{name}.{n}{end}", 3 * hidden, *more) for n, more in parts.items()]


def linear(state_dict: Mapping[str, Tensor], name: str, x: Tensor, bias: bool = True) -> Tensor:
    """The linear map `name` of x [..., in] -> [..., out]"""
    weight = parameter(state_dict, f"{name}.weight", None, x.shape[-1])
    return F.linear(x, weight, parameter(state_dict, f"{name}.bias", len(weight)) if bias else None)


def parameter(state_dict: Mapping[str, Tensor], name: str, *shape: int | None) -> Tensor:
    """The parameter `name`, of the given shape, in which None is any size."""
    if name not in state_dict:
        raise CheckpointError(f"ancestor state dict: {name} is missing; do the options belong to this model?")
    found = tuple(state_dict[name].shape)
    if len(found) != len(shape) or any(s not in (None, f) for s, f in zip(shape, found, strict=True)):
        expected = ", ".join("any" if s is None else str(s) for s in shape)
        raise CheckpointError(
            f"ancestor state dict: {name} is {found}, expected ({expected}); do options and inputs belong to this "
            "model?"
        )
    return state_dict[name]
