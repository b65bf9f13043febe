"""graph_mix: a weighted sum of many sparse graphs, applied to features without ever being formed."""

from typing import Any

from torch import Tensor

from glomo_kernels import checks, graph_checks
from glomo_kernels.dispatch import run
from glomo_kernels.graph import SparseGraph
from glomo_kernels.registration import operator

OP, APPLY = "graph_mix", "graph_apply"


def graph_mix(graph: SparseGraph, weights: Tensor, features: Tensor, *, heads: int | None = None) -> Tensor:
    """y_i = sum_c w_ic sum_j P_c[i, j] H_j over the C components P_c of every sample.

    graph     SparseGraph of shape (B, C, T); its weights are constants
    weights   [B, T, C'] (one vector per unit) or [C'] (one for all), any float dtype
    features  [B, T, D]  float16 | bfloat16 | float32 | float64: H
    heads     None: C' = C, the components as they are.
              K: component l*K + k is head k of layer l, C = L*K, and the products down the layers take part,
              Lambda^(l,k) = G^(l,k) Lambda^(l-1,k) with Lambda^(0,k) = G^(0,k). C' = (2L-1)*K, in the order
              G^0, G^1, Lambda^1, G^2, Lambda^2, ... (K heads each). They are applied, never formed.
              Features in half precision are copied to float32, as are the products. The backward pass makes these
              anew: none is kept for it.
    ->        [B, T, D] dtype of features; sums in float32 (float64 for float64 features).
              Gradients for weights and features. Second derivatives are refused.

    Features must be finite, those of padding too: with many edges the sum of the components is treated as dense,
    and places without an edge multiply by zero.
    """
    graph_checks.check_graph(OP, graph)
    checks.check_tensors(OP, weights=weights, features=features)
    batch, components, units = graph.shape
    if features.ndim != 3 or checks.shape(features)[:2] != (batch, units):
        raise ValueError(
            f"{OP}: features must be {(batch, units, 'D')} to go with the graph {graph.shape}, "
            f"got {checks.shape(features)}"
        )
    graph_checks.check_floating(OP, "features", features, graph)
    if heads is not None:
        heads = checks.check_whole(OP, "heads", heads, "a whole number or None")
    terms = components if heads is None else _product_terms(components, heads)
    if not checks.has_shape(weights, (terms,), (batch, units, terms)):
        raise ValueError(
            f"{OP}: weights must be {(terms,)} or {(batch, units, terms)} for the graph {graph.shape} "
            f"with heads={heads}, got {checks.shape(weights)}"
        )
    graph_checks.check_floating(OP, "weights", weights, graph)
    edges = (graph.offsets, graph.columns, graph.weights)
    in_layer = components if heads is None else heads  # as they are: one layer, without products
    mixed: Tensor = _mix(*edges, components, in_layer, weights, features)
    return mixed


def graph_apply(graph: SparseGraph, features: Tensor, *, first: int = 0) -> Tensor:
    """z_k = P_(first+k) x_k: K components of every sample, each applied to its own features.

    graph     SparseGraph of shape (B, C, T); its weights are constants
    features  [B, K, T, D] with first + K <= C, float dtype
    ->        [B, K, T, D] dtype of features; gradient for features
    """
    graph_checks.check_graph(APPLY, graph)
    checks.check_tensors(APPLY, features=features)
    batch, components, units = graph.shape
    if features.ndim != 4 or (features.shape[0], features.shape[2]) != (batch, units):
        raise ValueError(
            f"{APPLY}: features must be {(batch, 'K', units, 'D')} to go with the graph {graph.shape}, "
            f"got {checks.shape(features)}"
        )
    graph_checks.check_floating(APPLY, "features", features, graph)
    first, count = checks.check_whole(APPLY, "first", first), features.shape[1]
    if not 0 <= first <= components - count:
        raise ValueError(
            f"{APPLY}: components {first}..{first + count - 1} are not all in 0..{components - 1}"
        )
    edges = (graph.offsets, graph.columns, graph.weights)
    result: Tensor = _apply(*edges, components, first, features)
    return result


def _product_terms(components: int, heads: int) -> int:
    """C' of graph_mix with products."""
    if heads < 1 or not components or components % heads:
        raise ValueError(f"{OP}: heads must divide the {components} components of the graph, got {heads}")
    return (2 * (components // heads) - 1) * heads


@operator("graph_mix")
def _mix(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    heads: int,
    weights: Tensor,
    features: Tensor,
) -> Tensor:
    """graph_mix; heads: components in a layer, all of them if they are taken as they are."""
    graph_checks.check_edges(OP, offsets, columns, features.shape[1])
    arguments = (offsets, columns, values, components, heads, weights, features)
    result: Tensor = run(OP, "forward", features.device, (features,), *arguments)
    return result


@_mix.register_fake
def _(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    components: int,
    heads: int,
    weights: Tensor,
    features: Tensor,
) -> Tensor:
    return features.new_empty(features.shape)


@operator("graph_mix_backward")
def _mix_backward(
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
    arguments = (grad, offsets, columns, values, components, heads, weights, features)
    result: tuple[Tensor, Tensor] = run(
        OP, "backward", features.device, (features,), *arguments, want_weights, want_features
    )
    return result


@_mix_backward.register_fake
def _(
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
    return (
        weights.new_empty(weights.shape if want_weights else (0,)),
        features.new_empty(features.shape if want_features else (0,)),
    )


def _mix_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    offsets, columns, values, ctx.components, ctx.heads, weights, features = inputs
    ctx.save_for_backward(offsets, columns, values, weights, features)


def _mix_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    offsets, columns, values, weights, features = ctx.saved_tensors
    want_weights, want_features = ctx.needs_input_grad[5], ctx.needs_input_grad[6]
    d_weights, d_features = _mix_backward(
        *(grad, offsets, columns, values, ctx.components, ctx.heads, weights, features),
        *(want_weights, want_features),
    )
    grads = (d_weights if want_weights else None, d_features if want_features else None)
    return (None, None, None, None, None, *grads)


_mix.register_autograd(_mix_autograd, setup_context=_mix_setup)
_mix_backward.refuse_derivative(OP)


@operator(APPLY)
def _apply(
    offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int, x: Tensor
) -> Tensor:
    """z_k = P_(first+k) x_k; x [B, K, T, D]."""
    graph_checks.check_edges(APPLY, offsets, columns, x.shape[2])
    arguments = (offsets, columns, values, components, first, x.shape[1], x)
    result: Tensor = run(OP, "apply_forward", x.device, (x,), *arguments)
    return result


@_apply.register_fake
def _(offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@operator("graph_apply_backward")
def _apply_backward(
    grad: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int
) -> Tensor:
    """Gradient of x: [B, K, T, D]."""
    arguments = (grad, offsets, columns, values, components, first, grad.shape[1])
    result: Tensor = run(OP, "apply_backward", grad.device, (grad,), *arguments)
    return result


@_apply_backward.register_fake
def _(grad: Tensor, offsets: Tensor, columns: Tensor, values: Tensor, components: int, first: int) -> Tensor:
    return grad.new_empty(grad.shape)


def _apply_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    offsets, columns, values, ctx.components, ctx.first, _ = inputs
    ctx.save_for_backward(offsets, columns, values)


def _apply_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, None, None, None, None, _apply_backward(grad, *ctx.saved_tensors, ctx.components, ctx.first)


_apply.register_autograd(_apply_autograd, setup_context=_apply_setup)
_apply_backward.refuse_derivative(APPLY)
