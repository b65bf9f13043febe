"""What is measured: for each case the backends of an op and the plain PyTorch ways to the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import glomo_kernels as gk
import numpy as np
import torch
import torch.nn.functional as F
from common import Case, Run, dense_weights, hidden_keys, planted, scores, with_backends, with_gradients
from torch import Tensor

OPS = ("affinity_mix", "affinity_graph", "graph_mix", "decoder_loss")


def affinity_mix(
    b: int,
    h: int,
    t: int,
    width: int,
    values: int,
    *,
    causal: bool = True,
    backward: bool = True,
    live: float = 1.0,
    edges: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Case:
    q, k, theta = scores(b, h, t, width, edges) if live == 1 else planted(b, h, t, width, live)
    tensors = [x.detach().to(dtype) for x in (q, k, torch.randn(b, h, t, values), theta)]
    inputs = [x.requires_grad_(backward) for x in tensors]
    hidden = hidden_keys(t) if causal else None
    # one static size each, as a user with one size has it; and torch.compile gives up on a function of many shapes
    torch._dynamo.reset()

    def mixed(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        return dense_weights(q, k, theta, hidden) @ v

    def timed(function: Callable[..., Tensor], used: int = 4) -> Run:
        def run() -> list[Tensor]:
            output = function(*inputs)
            return with_gradients(output, inputs[:used]) if backward else [output]

        return run

    def sdpa(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        padded = F.pad(v, (0, width - values))  # faster than its way for two different widths
        return F.scaled_dot_product_attention(q, k, padded, is_causal=causal)[..., :values]

    runs = with_backends(
        "affinity_mix",
        {"eager": timed(mixed), "torch.compile": timed(torch.compile(mixed))},
        timed(lambda *x: gk.affinity_mix(*x, causal=causal)),
    )
    peers = {"SDPA (softmax)": timed(sdpa, 3)}
    if not backward:  # it has no backward on a CPU
        peers["FlexAttention"] = timed(flex_attention(t, causal))
    parts = ["causal" if causal else "both sides", "forward+backward" if backward else "forward"]
    parts += [f"{live:.0%} of tiles live"] if live < 1 else []
    parts += [f"{edges:.0%} of edges"] if edges != 0.1 else []
    parts += ["bfloat16"] if dtype == torch.bfloat16 else []
    return Case("affinity_mix", f"B{b} H{h} T{t} {width}/{values} {', '.join(parts)}", runs, peers)


def flex_attention(
    t: int, causal: bool, device: str = "cpu", compiler: Callable[..., Any] = torch.compile
) -> Callable[..., Tensor]:
    """The same function but for empty rows: softmax of 2 log relu(s)."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = compiler(flex_attention)
    seen = (lambda b, h, i, j: j < i) if causal else (lambda b, h, i, j: j >= 0)
    mask = create_block_mask(seen, None, None, t, t, device=device)

    def run(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        def modify(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return 2 * torch.log(torch.relu(score - theta[b, h, i]))

        output: Tensor = compiled(q, k, v, score_mod=modify, block_mask=mask, scale=1.0)
        return output

    return run


def affinity_graph(b: int, h: int, t: int, width: int) -> Case:
    q, k, theta = (x.detach() for x in scores(b, h, t, width))

    def dense() -> list[Tensor]:
        csr = dense_weights(q, k, theta, hidden_keys(t)).view(b * h * t, t).to_sparse_csr()
        return [csr.col_indices().int(), csr.values()]

    def ours() -> list[Tensor]:
        graph = gk.affinity_graph(q, k, theta)
        return [graph.columns, graph.weights]

    runs = with_backends("affinity_graph", {"dense + to_sparse_csr": dense}, ours)
    return Case("affinity_graph", f"B{b} H{h} T{t} {width} forward", runs)


def products_mix(b: int, layers: int, heads: int, t: int, width: int, keep: int) -> Case:
    """As the task models mix frozen features: few edges, products down the layers, one vector of weights for all."""
    with torch.no_grad():
        graph = gk.affinity_graph(*scores(b, layers * heads, t, 16), keep=keep)
    dense, features = graph.dense(), torch.randn(b, t, width)
    weights = torch.randn((2 * layers - 1) * heads, requires_grad=True)

    def formed() -> list[Tensor]:
        by_layer = dense.unflatten(1, (layers, heads)).unbind(1)
        terms = [product := by_layer[0]]
        for layer in by_layer[1:]:
            terms += [layer, product := layer @ product]
        mixture = (weights.view(-1, 1, 1) * torch.cat(terms, 1)).sum(1)
        return with_gradients(mixture @ features, [weights])

    runs = with_backends(
        "graph_mix",
        {"dense graphs, M formed": formed},
        lambda: with_gradients(gk.graph_mix(graph, weights, features, heads=heads), [weights]),
    )
    return Case("graph_mix", f"B{b} L{layers} K{heads} T{t} D{width} products forward+backward", runs)


def graph_mix(b: int, c: int, t: int, width: int) -> Case:
    with torch.no_grad():
        graph = gk.affinity_graph(*scores(b, c, t, 16))
    weights = torch.randn(b, t, c, requires_grad=True)
    inputs = [weights, torch.randn(b, t, width, requires_grad=True)]
    dense = graph.dense()
    rows = [dense[i].reshape(c * t, t).to_sparse_csr() for i in range(b)]

    def formed() -> list[Tensor]:
        mixture = (weights.transpose(1, 2)[..., None] * dense).sum(1)
        return with_gradients(mixture @ inputs[1], inputs)

    def sparse() -> list[Tensor]:
        parts = [(csr @ x).view(c, t, width) for csr, x in zip(rows, inputs[1], strict=True)]
        return with_gradients((torch.stack(parts) * weights.transpose(1, 2)[..., None]).sum(1), inputs)

    matrices = [scipy_csr(csr) for csr in rows]

    def scipy_sparse() -> list[Tensor]:
        """Forward and, with an upstream of ones, backward by hand: SciPy knows no gradients."""
        mixed, d_weights, d_features = [], [], []
        for matrix, x, w in zip(matrices, inputs[1].detach().numpy(), weights.detach().numpy(), strict=True):
            parts = (matrix @ x).reshape(c, t, width)
            mixed.append(np.einsum("tc,ctd->td", w, parts))
            d_weights.append(parts.sum(-1).T)
            d_features.append(matrix.T @ np.repeat(w.T.reshape(c * t, 1), width, 1))
        return [torch.from_numpy(np.stack(x)) for x in (mixed, d_weights, d_features)]

    runs = with_backends(
        "graph_mix",
        {"dense graphs, M formed": formed, "torch.sparse": sparse, "SciPy": scipy_sparse},
        lambda: with_gradients(gk.graph_mix(graph, *inputs), inputs),
    )
    return Case("graph_mix", f"B{b} C{c} T{t} D{width} forward+backward", runs)


def scipy_csr(csr: Tensor) -> Any:
    from scipy.sparse import csr_matrix

    parts = (csr.values(), csr.col_indices(), csr.crow_indices())
    return csr_matrix(tuple(part.numpy() for part in parts), shape=csr.shape)


def decoder_loss(
    n: int, width: int, words: int, rounds: int = 1000, dtype: torch.dtype = torch.float32
) -> Case:
    # logits of size 1: larger ones would time the arithmetic of denormal exponentials
    inputs = [torch.randn(n, width), torch.randn(words, width) / width**0.5]
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    target = torch.randint(0, words, (n,))

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight), target)

    compiled = torch.compile(plain)
    others = {
        "F.cross_entropy": lambda: with_gradients(plain(*inputs), inputs),
        "torch.compile": lambda: with_gradients(compiled(*inputs), inputs),
    }
    if hasattr(F, "linear_cross_entropy"):
        # by chunks of its own choice it takes minutes on a CPU
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=128)
        others["F.linear_cross_entropy"] = lambda: with_gradients(
            F.linear_cross_entropy(*inputs, target, options=options), inputs
        )
    runs = with_backends(
        "decoder_loss",
        others,
        lambda: with_gradients(gk.decoder_loss(*inputs, target), inputs),
    )
    shape = f"N{n} d{width} V{words} forward+backward" + (", bfloat16" if dtype == torch.bfloat16 else "")
    return Case("decoder_loss", shape, runs, rounds=rounds)


def cases(quick: bool) -> Iterator[Case]:
    """The sizes of the demo if quick, else also those of the paper. Made one by one: they are large."""
    yield affinity_mix(16, 4, 128, 32, 16)
    yield affinity_graph(16, 4, 128, 32)
    yield graph_mix(16, 8, 128, 100)
    yield products_mix(32, 2, 4, 200, 100, 8)
    yield decoder_loss(960, 64, 8000)
    if quick:
        return
    yield affinity_mix(1, 8, 2048, 256, 64, backward=False)
    for values in (256, 64):
        for b, t in ((8, 200), (4, 512), (1, 2048)):
            yield affinity_mix(b, 8, t, values, 64)
    for values in (256, 64):
        yield affinity_mix(1, 8, 2048, values, 64, edges=0.5)
    yield affinity_mix(1, 8, 2048, 256, 64, causal=False)
    yield affinity_mix(1, 8, 2048, 256, 64, causal=False, live=0.1)
    yield affinity_graph(1, 8, 2048, 64)
    yield affinity_graph(1, 8, 2048, 256)
    yield graph_mix(4, 40, 400, 300)
    yield decoder_loss(1920, 512, 100_000, rounds=3)
    half = {"dtype": torch.bfloat16}
    for values in (256, 64):
        yield affinity_mix(1, 8, 2048, values, 64, backward=False, **half)
        for b, t in ((8, 200), (4, 512), (1, 2048)):
            yield affinity_mix(b, 8, t, values, 64, **half)
    yield decoder_loss(1920, 512, 100_000, rounds=3, **half)
