"""What `bench` measures: the shapes of the goals, our op and its peers on one device, and the work of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import NamedTuple

import cases
import common
import glomo_kernels as gk
import torch
import torch.nn.functional as F
from torch import Tensor

from gpu import timing, work
from gpu.timing import Run
from gpu.work import Work


class GpuCase(NamedTuple):
    """ways: by name, "ours" first; each made when it is called, so that one that cannot be made costs the others
    nothing.  check: of what a way returned, the relative error, or None where it computes something else.
    """

    op: str
    shape: str
    work: Work
    ways: dict[str, Callable[[], Run]]
    check: Callable[[object], float | None]
    goal: str = ""


class Sizes(NamedTuple):
    """On a GPU the shapes of the goals; dry, shapes for a CPU and the interpreter."""

    dry: bool

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def half(self) -> torch.dtype:
        return torch.float32 if self.dry else torch.bfloat16

    def of(self, full: int, tiny: int) -> int:
        return tiny if self.dry else full


def compiled(function: Callable[..., Tensor], sizes: Sizes, **options: object) -> Callable[..., Tensor]:
    """torch.compile; dry without a code generator, which would take longer than all the rest."""
    torch._dynamo.reset()
    return torch.compile(function, **({"backend": "aot_eager"} if sizes.dry else options))


def relative(a: Tensor, exact: Tensor, terms: Tensor | None = None) -> float:
    """The norm of the error over that of the exact result, or of the terms of its sums if these cancel."""
    a, exact = a.detach().double(), exact.detach().double()
    size = exact.norm() if terms is None else torch.maximum(exact.norm(), terms.norm())
    return float((a - exact).norm() / size.clamp(min=1e-300))


def mix(
    sizes: Sizes, b: int, t: int, width: int, values: int, step: str, *, live: float = 1.0, flex: bool = False,
    sdpa: bool = False, plain: bool = False, goal: str = "",
) -> GpuCase:  # fmt: skip
    """affinity_mix, H 8, causal. step: forward | backward | both; the gradients with that of the threshold."""
    h = sizes.of(8, 1)
    make = partial(common.planted, share=live) if live < 1 else common.scores
    with torch.device(sizes.device):
        q, k, theta = (x.detach().to(sizes.half) for x in make(b, h, t, width))
        v = torch.randn(b, h, t, values, dtype=sizes.half)
        upstream = torch.randn(b, h, t, values, dtype=sizes.half)
        hidden = common.hidden_keys(t)
    inputs = [x.requires_grad_(step != "forward") for x in (q, k, v, theta)]

    def prepared(function: Callable[..., Tensor], used: int = 4, graph: bool = False) -> Run:
        if step == "forward":
            return lambda: function(*inputs)
        if step == "backward":
            output = function(*inputs)
            return lambda: torch.autograd.grad(output, inputs[:used], upstream, retain_graph=True)

        def both() -> object:
            output = function(*inputs)
            return [output, *torch.autograd.grad(output, inputs[:used], upstream)]

        if graph:
            both()
            return timing.in_a_graph(both)
        return both

    def eager(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        return common.dense_weights(q, k, theta, hidden) @ v

    def softmax(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        padded = F.pad(v, (0, width - values)) if values < width else v
        return F.scaled_dot_product_attention(q, k, padded, is_causal=True)[..., :values]

    def cudnn(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        where: AbstractContextManager[None] = (
            nullcontext() if sizes.dry else sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
        )
        with where:
            return softmax(q, k, v, theta)

    def flexible() -> Run:
        def compiler(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return function if sizes.dry else compiled(function, sizes)

        return prepared(cases.flex_attention(t, True, sizes.device, compiler))

    def mixed(*x: Tensor) -> Tensor:
        output: Tensor = gk.affinity_mix(*x)
        return output

    ways: dict[str, Callable[[], Run]] = {"ours": lambda: prepared(mixed)}
    if plain:
        # Once: compiling it for the second way would forget the first one's, to be compiled again while it is timed.
        fast = cache(lambda: compiled(eager, sizes))
        ways["eager"] = lambda: prepared(eager)
        ways["torch.compile"] = lambda: prepared(fast())
        if not sizes.dry and step == "both":
            ways["ours, CUDA graph"] = lambda: prepared(mixed, graph=True)
            ways["torch.compile, CUDA graph"] = lambda: prepared(fast(), graph=True)
    if flex:
        ways["FlexAttention"] = flexible
    if sdpa:
        ways["SDPA (softmax)"] = lambda: prepared(softmax, 3)
        ways["SDPA cuDNN (softmax)"] = lambda: prepared(cudnn, 3)

    def check(result: object) -> float | None:
        """Of the first head of the first sample, against float64."""
        if result is None:
            return None
        exact = [x[:1, :1].detach().double().requires_grad_() for x in inputs]
        scores = exact[0] @ exact[1].mT - exact[3][..., None]
        output = common.weights_of(scores, hidden) @ exact[2]
        if step == "forward":
            return relative(result[:1, :1], output)  # type: ignore[index]
        *expected, slopes = torch.autograd.grad(output, (*exact, scores), upstream[:1, :1].double())
        # Where the weights of a row are nearly one, as planted ones are, its slopes add up to nearly nothing.
        q, k, v, _ = (x.detach().square() for x in exact)
        squares = slopes.square()
        terms = (squares @ k).sqrt(), (squares.mT @ q).sqrt(), torch.zeros_like(v), slopes
        given = [x[:1, :1] for x in result[-4:]]  # type: ignore[index]
        return max(map(relative, given, expected, terms))

    forward, backward = work.affinity_mix(b, h, t, width, values, size=q.element_size(), live=live)
    chosen = {"forward": forward, "backward": backward, "both": forward + backward}[step]
    part = f", {live:.0%} of tiles live (planted)" if live < 1 else ""
    shape = f"B{b} H{h} T{t} {width}/{values} {step}{part}"
    return GpuCase("affinity_mix", shape, chosen, ways, check, goal)


def graph(sizes: Sizes, t: int, width: int) -> GpuCase:
    h = sizes.of(8, 1)
    with torch.device(sizes.device):
        q, k, theta = (x.detach().to(sizes.half) for x in common.scores(1, h, t, width))
        hidden = common.hidden_keys(t)

    def dense() -> object:
        return common.dense_weights(q, k, theta, hidden).view(h * t, t).to_sparse_csr().values()

    def ours() -> Tensor:
        return gk.affinity_graph(q, k, theta).weights

    def check(result: object) -> float | None:
        """The sum of the weights of every row is 1 or 0, of all rows their number: edges at the threshold differ."""
        exact = common.dense_weights(q.double(), k.double(), theta.double(), hidden).sum()
        return float((result.double().sum() - exact).abs() / exact)  # type: ignore[attr-defined]

    edges = ours().numel()
    made = work.affinity_graph(1, h, t, width, edges, size=q.element_size())
    ways = {"ours": lambda: ours, "dense + to_sparse_csr": lambda: dense}
    shape = f"B1 H{h} T{t} {width}, {edges} edges, forward"
    return GpuCase("affinity_graph", shape, made, ways, check, "5x dense")


def graph_mix(sizes: Sizes, b: int, c: int, t: int, width: int) -> GpuCase:
    with torch.device(sizes.device):
        with torch.no_grad():
            sparse = gk.affinity_graph(*common.scores(b, c, t, 16))
        weights = torch.randn(b, t, c, requires_grad=True)
        features = torch.randn(b, t, width, requires_grad=True)
    inputs = [weights, features]

    def ours() -> object:
        return common.with_gradients(gk.graph_mix(sparse, *inputs), inputs)

    def formed() -> Run:
        dense = sparse.dense()
        return lambda: common.with_gradients(
            (weights.transpose(1, 2)[..., None] * dense).sum(1) @ features, inputs
        )

    def torch_sparse() -> Run:
        dense = sparse.dense()
        rows = [dense[i].reshape(c * t, t).to_sparse_csr() for i in range(b)]

        def run() -> object:
            parts = [(csr @ x).view(c, t, width) for csr, x in zip(rows, features, strict=True)]
            mixed = (torch.stack(parts) * weights.transpose(1, 2)[..., None]).sum(1)
            return common.with_gradients(mixed, inputs)

        return run

    def check(result: object) -> float | None:
        dense = sparse.dense().double()
        w, x = (leaf.detach().double().requires_grad_() for leaf in inputs)
        output = (w.transpose(1, 2)[..., None] * dense).sum(1) @ x
        expected = [output, *torch.autograd.grad(output.sum(), (w, x))]
        return max(relative(a, e) for a, e in zip(result, expected, strict=True))  # type: ignore[call-overload]

    made = work.graph_mix(b, t, width, sparse.columns.numel(), c)
    ways = {"ours": lambda: ours, "dense graphs, M formed": formed, "torch.sparse": torch_sparse}
    return GpuCase("graph_mix", f"B{b} C{c} T{t} D{width} forward+backward", made, ways, check, "5x dense")


def decoder_loss(sizes: Sizes, n: int, width: int, words: int) -> GpuCase:
    with torch.device(sizes.device):
        hidden = torch.randn(n, width, dtype=sizes.half, requires_grad=True)
        weight = (torch.randn(words, width) / width**0.5).to(sizes.half).requires_grad_()
        target = torch.randint(0, words, (n,))
    inputs = [hidden, weight]

    def gradients(function: Callable[..., Tensor]) -> Run:
        def run() -> object:
            loss = function(*inputs)
            return [loss.detach(), *torch.autograd.grad(loss, inputs)]

        return run

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), target)

    def liger() -> Run:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # if it is there

        function = LigerFusedLinearCrossEntropyLoss()
        return gradients(lambda hidden, weight: function(weight, hidden, target))

    def check(result: object) -> float | None:
        exact = [x.detach().double().requires_grad_() for x in inputs]
        loss = F.cross_entropy(F.linear(*exact), target)
        expected = [loss, *torch.autograd.grad(loss, exact)]
        return max(relative(a, e) for a, e in zip(result, expected, strict=True))  # type: ignore[call-overload]

    ways = {
        "ours": lambda: gradients(lambda *x: gk.decoder_loss(*x, target)),
        "F.cross_entropy": lambda: gradients(plain),
        "torch.compile": lambda: gradients(compiled(plain, sizes)),
        **({} if sizes.dry else {"Liger": liger}),
    }
    made = work.decoder_loss(n, width, words, size=hidden.element_size())
    return GpuCase("decoder_loss", f"N{n} d{width} V{words} forward+backward", made, ways, check, "0.85x")


def every(sizes: Sizes) -> Iterator[Callable[[], GpuCase]]:
    """The goals, most important first: what the time does not reach is at the end."""
    of = sizes.of
    square, paper = (of(128, 16), of(128, 16)), (of(256, 32), of(64, 16))
    long, middle = of(8192, 66), of(2048, 40)
    yield lambda: mix(sizes, of(4, 1), long, *square, "forward", sdpa=True, goal="520 TFLOP/s, 0.9x SDPA")
    yield lambda: mix(sizes, of(4, 1), long, *square, "backward", sdpa=True, goal="390 TFLOP/s, 0.9x SDPA")
    yield lambda: mix(sizes, of(256, 1), of(200, 40), *paper, "both", plain=True, goal="5x eager, 2x compile")
    yield lambda: mix(sizes, of(4, 1), long, *paper, "forward", goal="550 TFLOP/s")
    yield lambda: mix(sizes, of(4, 1), long, *paper, "backward", goal="320 TFLOP/s")
    yield lambda: mix(sizes, of(4, 1), long, *square, "both", flex=True, goal="2x FlexAttention")
    yield lambda: mix(sizes, of(4, 1), long, *square, "both", live=0.2, flex=True, goal="4x FlexAttention")
    yield lambda: mix(sizes, of(16, 1), middle, *square, "forward", sdpa=True, goal="520 TFLOP/s, 0.9x SDPA")
    yield lambda: mix(sizes, of(16, 1), middle, *square, "backward", sdpa=True, goal="390 TFLOP/s, 0.9x SDPA")
    yield lambda: graph(sizes, middle, of(64, 16))
    yield lambda: graph_mix(sizes, of(4, 1), of(40, 4), of(400, 40), of(300, 20))
    yield lambda: decoder_loss(sizes, of(1920, 32), of(512, 16), of(100_000, 200))
    yield lambda: mix(sizes, of(16, 1), middle, *paper, "both", plain=True, goal="")
