"""What the cases share: the ways to run them, their inputs, and the formula in plain PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import glomo_kernels as gk
import torch
from glomo_kernels.dispatch import VARIABLE
from torch import Tensor

Run = Callable[[], list[Tensor]]


class Case(NamedTuple):
    """runs: by name, each returning what it computed; the first is what the others are compared with.

    peers: ways to something like it (softmax in the place of relu squared), timed and not compared.
    rounds: how often at most, for cases of many seconds.
    """

    op: str
    shape: str
    runs: dict[str, Run]
    peers: dict[str, Run] = {}  # noqa: RUF012 - never changed
    rounds: int = 1000


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """GLOMO_KERNELS names the backend within."""
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
    """The plain ways, and ours on each backend of the op that is usable here."""

    def on(backend: str) -> Run:
        def run() -> list[Tensor]:
            with forced(backend):
                return ours()

        return run

    usable = [name for name, missing in gk.backends(op).items() if missing is None]
    return {**plain, **{name: on(name) for name in usable}}


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [output.detach(), *torch.autograd.grad(output.sum(), inputs)]


def hidden_keys(units: int) -> Tensor:
    """True where key j is not before unit i."""
    return torch.ones(units, units, dtype=torch.bool).triu()


def dense_weights(q: Tensor, k: Tensor, theta: Tensor, hidden: Tensor | None) -> Tensor:
    return weights_of(q @ k.mT - theta[..., None], hidden)


def weights_of(scores: Tensor, hidden: Tensor | None) -> Tensor:
    a = scores.relu().square()
    a = a if hidden is None else a.masked_fill(hidden, 0)
    return a / (a.sum(-1, keepdim=True) + 1e-16)


def scores(b: int, h: int, t: int, width: int, edges: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and a theta that leaves about `edges` of the edges, but no tile without one."""
    q, k = (torch.randn(b, h, t, width) / width**0.25 for _ in range(2))
    theta = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - edges))
    return q.requires_grad_(), k.requires_grad_(), theta.expand(b, h, t).clone().requires_grad_()


def planted(b: int, h: int, t: int, width: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, theta with edges in about `share` of the tiles of 64 x 64 only: each has a feature of its own."""
    blocks = -(-t // 64)
    assert blocks <= width
    own = torch.eye(blocks, width).repeat_interleave(64, 0)[:t]
    wanted = (torch.rand(b, h, blocks, width) < share).float().repeat_interleave(64, 2)[:, :, :t]
    q, k = (4 * x + 0.01 * torch.randn(b, h, t, width) for x in (wanted, own))
    return q.requires_grad_(), k.requires_grad_(), torch.ones(b, h, t, requires_grad=True)
