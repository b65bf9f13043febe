"""graph_mix and its products down the layers, for backends that go layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from glomo_kernels.scores import compute_dtype


def layerwise(
    mix: Callable[..., Tensor],
    mix_backward: Callable[..., tuple[Tensor, Tensor]],
    apply_forward: Callable[..., Tensor],
    apply_backward: Callable[..., Tensor],
) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    """`forward` and `backward` of a backend with these steps: the components as they are, and of several layers the
    products Lambda^l H = G^l (Lambda^(l-1) H).

    mix: of some components, with weights for these; features [B, T, D], or [B, count, T, D], each component's own.
    """

    def up(edges: tuple[Any, ...], layers: int, heads: int, x: Tensor) -> Iterator[Tensor]:
        """Lambda^0 H, .., one for each of so many layers, [B, heads, T, D]."""
        product = x[:, None]
        for layer in range(layers):
            product = apply_forward(*edges, layer * heads, heads, product)
            yield product

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
        edges = (offsets, columns, values, components)
        if heads == components:
            return mix(*edges, 0, weights, features)
        x = features.to(compute_dtype(features))
        plain, of_products = _apart(weights.to(x.dtype), heads)
        result = mix(*edges, 0, plain, x)
        for layer, (w, product) in enumerate(
            zip(of_products, up(edges, len(of_products), heads, x), strict=True), 1
        ):
            result = result + mix(*edges, layer * heads, w, product)
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
        edges, wanted = (offsets, columns, values, components), (want_weights, want_features)
        if heads == components:
            return mix_backward(grad, *edges, 0, weights, features, *wanted)
        x = features.to(compute_dtype(features))
        grad = grad.to(x.dtype)
        plain, of_products = _apart(weights.to(x.dtype), heads)
        d_plain, d_x = mix_backward(grad, *edges, 0, plain, x, *wanted)
        d_weights, d_products = [], []
        # for the gradient of the features alone it does not matter what they are
        below = (
            up(edges, len(of_products), heads, x)
            if want_weights
            else repeat(x[:, None].expand(-1, heads, -1, -1))
        )
        for layer, (w, product) in enumerate(zip(of_products, below, strict=False), 1):
            d_w, d_product = mix_backward(grad, *edges, layer * heads, w, product, *wanted)
            d_weights.append(d_w)
            d_products.append(d_product)
        if want_features:
            above = d_products.pop()
            while d_products:
                layer = len(d_products)
                above = d_products.pop() + apply_backward(above, *edges, layer * heads, heads, False)
            d_x = d_x + apply_backward(above, *edges, 0, heads, True)[:, 0]
        joined = _together(d_plain, d_weights, heads) if want_weights else d_plain
        return joined.to(weights.dtype), d_x.to(features.dtype)

    return forward, backward


def _apart(weights: Tensor, heads: int) -> tuple[Tensor, list[Tensor]]:
    """Weights of all terms -> those of the components, layer by layer, and those of the products of each layer."""
    first, *later = weights.split(heads, -1)
    return torch.cat([first, *later[::2]], -1), later[1::2]


def _together(plain: Tensor, of_products: list[Tensor], heads: int) -> Tensor:
    first, *later = plain.split(heads, -1)
    return torch.cat([first, *(part for pair in zip(later, of_products, strict=True) for part in pair)], -1)
