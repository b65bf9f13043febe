"""Times a grid of configurations of the three kernels of affinity_mix, more than the autotuner may choose from.

    make gpu PARTS=tune

Per shape: each kernel alone, by events around its launch inside of whole calls, the other two with their first
choice. A configuration that cannot be compiled or does not fit is a row with a reason. The best ones are the
candidates for triton_configs.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from glomo_kernels import affinity_mix
from glomo_kernels.affinity_mix import triton_configs, triton_impl
from glomo_kernels.affinity_mix import triton_launch as launching
from glomo_kernels.affinity_mix.triton_configs import Config

from gpu import work
from gpu.part import Part, read_table

COLUMNS = ("kernel", "shape", "config", "ms", "tflops", "failure")
CHOICES = {"forward_kernel": "forward", "query_kernel": "query", "key_kernel": "key"}
SHAPES = ((4, 8192, 128, 128), (4, 8192, 256, 64), (256, 200, 256, 64), (16, 2048, 64, 64))
REPEATS = 5


def grid(kernel: str) -> Iterator[Config]:
    """Blocks along which lists of live tiles are cut are multiples of 64, their steps divide 64 (LIVE).

    A warpgroup for each 64 rows of a block: more would repeat products (triton_configs.py). The likeliest come first:
    compiling takes longer than measuring, and the time may end.
    """
    blocks = ((128, 8), (64, 4))
    if kernel == "key_kernel":
        for step, (block, warps), stages in product((32, 64, 16), blocks, (2, 3)):
            yield Config(step, block, warps, stages)
        return
    steps = (64, 128, 32) if kernel == "forward_kernel" else (64, 32)
    for tma, step, (block, warps), stages in product((True, False), steps, blocks, (2, 3)):
        yield Config(block, step, warps, stages, tma)


@contextmanager
def forced(kernel: str, config: Config) -> Iterator[None]:
    """The launcher's only choice for `kernel`."""
    name = CHOICES[kernel]
    before = getattr(triton_configs, name)
    setattr(triton_configs, name, lambda case: [config])
    try:
        yield
    finally:
        setattr(triton_configs, name, before)


@contextmanager
def timed_launches() -> Iterator[list[tuple[str, Any, Any]]]:
    """(name, event before, event after) of every launch within."""
    events: list[tuple[str, Any, Any]] = []
    before: Callable[..., None] = launching.launch

    def launch(kernel: Any, *arguments: Any) -> None:
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        before(kernel, *arguments)
        pair[1].record()
        events.append((kernel.__name__, *pair))

    launching.launch = launch
    try:
        yield events
    finally:
        launching.launch = before


def kernel_ms(run: Callable[[], object], kernel: str) -> float:
    run(), run()
    with timed_launches() as events:
        for _ in range(REPEATS):
            run()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for name, a, b in events if name == kernel)


def main(part: Part) -> None:
    if part.dry:
        part.note(
            f"{sum(1 for _ in grid('forward_kernel'))} configurations per kernel and shape; needs a GPU"
        )
        return
    every_configuration(part)
    for line in best_of(read_table(part.out / "tune.csv")):
        part.note(line)


def best_of(rows: list[dict[str, str]]) -> list[str]:
    """A line for each kernel and shape that has a time; rows of earlier processes of this part count."""
    best: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["ms"]:
            what = row["kernel"], row["shape"]
            best[what] = min(best.get(what, row), row, key=lambda each: float(each["ms"]))
    return [
        f"{k} {shape}: best {row['config']}, {float(row['ms']):.3f} ms" for (k, shape), row in best.items()
    ]


def every_configuration(part: Part) -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # the first candidate, which `forced` makes the only one
    torch.utils.deterministic.fill_uninitialized_memory = False
    with part.table("tune", COLUMNS) as table:
        for (b, t, width, values), kernel in product(SHAPES, CHOICES):
            forward, backward = work.affinity_mix(b, 8, t, width, values)
            flops = forward.flops if kernel == "forward_kernel" else backward.flops
            q, k = (torch.randn(b, 8, t, width, device="cuda") / width**0.25 for _ in range(2))
            v, theta = torch.randn(b, 8, t, values, device="cuda"), torch.ones(b, 8, t, device="cuda")
            inputs = [x.to(torch.bfloat16).requires_grad_() for x in (q, k, v, theta)]

            def run(inputs: list[torch.Tensor] = inputs) -> object:
                mixed = affinity_mix(*inputs)
                return torch.autograd.grad(mixed, inputs, mixed.detach())

            shape = f"B{b} H8 T{t} {width}/{values}"
            first = getattr(triton_configs, CHOICES[kernel])(triton_impl._case(*inputs[:3], "relu"))
            for config in part.steps(dict.fromkeys([*first, *grid(kernel)])):
                if part.left() < 10:
                    part.note("no time for the rest of the grid")
                    return
                row: dict[str, Any] = {"kernel": kernel, "shape": shape, "config": str(config)}
                try:
                    with forced(kernel, config):
                        row["ms"] = kernel_ms(run, kernel)
                    row["tflops"] = flops / row["ms"] * 1e-9
                except Exception as error:
                    row["failure"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
                table.add(**row)
