"""What is measured: for each case the backends of an op and the plain PyTorch ways to the same result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import glomo_kernels as gk
import torch
import torch.nn.functional as F
from glomo_kernels.dispatch import TABLE, VARIABLE
from torch import Tensor

Run = Callable[[], list[Tensor]]


class Case(NamedTuple):
    """runs: by name, each returning what it computed; the first is what the others are compared with."""

    op: str
    shape: str
    runs: dict[str, Run]


@contextmanager
def forced(backend: str) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def with_backends(op: str, plain: dict[str, Run], ours: Run) -> dict[str, Run]:
    def on(backend: str) -> Run:
        def run() -> list[Tensor]:
            with forced(backend):
                return ours()

        return run

    return {**plain, **{backend.name: on(backend.name) for backend in TABLE[op]}}


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [output.detach(), *torch.autograd.grad(output.sum(), inputs)]


def dense_weights(q: Tensor, k: Tensor, theta: Tensor) -> Tensor:
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu()
    a = (q @ k.mT - theta[..., None]).relu().square().masked_fill(hidden, 0)
    return a / (a.sum(-1, keepdim=True) + 1e-16)


def scores(b: int, h: int, t: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and a theta that leaves about a tenth of the edges."""
    q, k = (torch.randn(b, h, t, width) / width**0.25 for _ in range(2))
    return q.requires_grad_(), k.requires_grad_(), torch.full((b, h, t), 1.28).requires_grad_()


def affinity_mix(b: int, h: int, t: int, width: int, values: int) -> Case:
    q, k, theta = scores(b, h, t, width)
    inputs = [q, k, torch.randn(b, h, t, values, requires_grad=True), theta]
    runs = with_backends(
        "affinity_mix",
        {"eager": lambda: with_gradients(dense_weights(q, k, theta) @ inputs[2], inputs)},
        lambda: with_gradients(gk.affinity_mix(*inputs), inputs),
    )
    return Case("affinity_mix", f"B{b} H{h} T{t} {width}/{values} forward+backward", runs)


def affinity_graph(b: int, h: int, t: int, width: int) -> Case:
    q, k, theta = (x.detach() for x in scores(b, h, t, width))

    def dense() -> list[Tensor]:
        csr = dense_weights(q, k, theta).view(b * h * t, t).to_sparse_csr()
        return [csr.col_indices().int(), csr.values()]

    def ours() -> list[Tensor]:
        graph = gk.affinity_graph(q, k, theta)
        return [graph.columns, graph.weights]

    runs = with_backends("affinity_graph", {"dense + to_sparse_csr": dense}, ours)
    return Case("affinity_graph", f"B{b} H{h} T{t} {width} forward", runs)


def graph_mix(b: int, c: int, t: int, width: int) -> Case:
    with torch.no_grad():
        graph = gk.affinity_graph(*scores(b, c, t, 16))
    weights = torch.randn(b, t, c, requires_grad=True)
    inputs = [weights, torch.randn(b, t, width, requires_grad=True)]
    dense = graph.dense()

    def formed() -> list[Tensor]:
        return with_gradients(torch.einsum("btc,bctj->btj", weights, dense) @ inputs[1], inputs)

    runs = with_backends(
        "graph_mix",
        {"dense graphs, M formed": formed},
        lambda: with_gradients(gk.graph_mix(graph, *inputs), inputs),
    )
    return Case("graph_mix", f"B{b} C{c} T{t} D{width} forward+backward", runs)


def decoder_loss(n: int, width: int, words: int) -> Case:
    inputs = [torch.randn(n, width, requires_grad=True), torch.randn(words, width, requires_grad=True)]
    target = torch.randint(0, words, (n,))
    plain = lambda: with_gradients(F.cross_entropy(inputs[0] @ inputs[1].T, target), inputs)  # noqa: E731
    ours = lambda: with_gradients(gk.decoder_loss(*inputs, target), inputs)  # noqa: E731
    runs = with_backends("decoder_loss", {"F.cross_entropy": plain}, ours)
    return Case("decoder_loss", f"N{n} d{width} V{words} forward+backward", runs)


def cases(quick: bool) -> list[Case]:
    """The sizes of the demo if quick, else also those of the paper."""
    small = [
        affinity_mix(16, 4, 128, 32, 16),
        affinity_graph(16, 4, 128, 32),
        graph_mix(16, 8, 128, 100),
        decoder_loss(960, 64, 8000),
    ]
    if quick:
        return small
    return [
        *small,
        affinity_mix(1, 8, 2048, 256, 64),
        affinity_graph(1, 8, 2048, 64),
        graph_mix(4, 40, 400, 300),
        decoder_loss(1920, 512, 100_000),
    ]
