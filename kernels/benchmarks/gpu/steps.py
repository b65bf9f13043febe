"""Steps of pretraining on a GPU: how many units per second, and where the time goes."""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu import timing
from gpu.part import Part, Table


def speed(part: Part, table: Table, data: Path, ranks: Any, recipe: Callable[..., Any]) -> None:
    """Steps without checkpoints, for several batches: units per second, share of the measured peak, the kernels."""
    from glomo_dist.data import Stream
    from glomo_dist.model import Glomo
    from glomo_dist.pretrain.cost import cost
    from glomo_dist.pretrain.settings.resolve import resolve_inputs
    from glomo_dist.pretrain.steps.clock import Clock
    from glomo_dist.pretrain.steps.engine import build_engine

    peak = timing.ceilings(part.device).half
    for batch in (4,) if part.dry else (64, 256, 1024):
        if part.left() < 15 and not part.dry:
            part.note("no time for larger batches")
            return
        job = resolve_inputs(recipe(part, 20, precision="bf16", global_batch=batch), data)
        model = Glomo(job.config.model)
        engine = build_engine(model, job.config, ranks)
        stream = Stream(
            job.index,
            window=job.config.window,
            windows=job.config.windows,
            seed=0,
            global_batch=batch,
            rank=0,
            world=1,
        )
        batches = [stream.batch(i) for i in range(2)]
        clock = Clock(ranks.device)

        step = functools.partial(_step, engine, batches, job.config, ranks, clock)
        for number in range(2 if part.dry else 5):
            step(number)
        clock.take()
        seconds, units, parts = [], 0, Counter[str]()
        for number in range(2 if part.dry else 10):
            began = time.perf_counter()
            units = step(number)
            parts.update(clock.take())
            seconds.append(time.perf_counter() - began)
        took = statistics.median(seconds)
        rate = cost(job.config).flops_per_unit * units / took / 1e12
        table.add(
            what="speed",
            batch=batch,
            units_s=units / took,
            tflops=rate,
            share_of_peak=rate / peak,
            seconds=took,
        )
        part.note(
            f"batch {batch}: {units / took:,.0f} units/s, {took * 1e3:.1f} ms a step, {rate:.3g} TFLOP/s, "
            f"{rate / peak:.1%} of the measured peak"
        )
        whole = sum(seconds)
        of_it = ", ".join(f"{name} {value / whole:.0%}" for name, value in parts.items())
        part.note(
            f"  of it by marks in the queue {of_it}: {parts.total() / whole:.0%} of what the host counts"
        )
        where_the_time_goes(part, table, step, batch)
        engine.destroy()
        del engine, model, step
        if not part.dry:
            torch.cuda.empty_cache()


def _step(engine: Any, batches: list[Any], config: Any, ranks: Any, clock: Any, number: int) -> int:
    """Units of one optimizer step."""
    from glomo_dist.pretrain.steps.step import train_step

    return train_step(engine, batches[number % 2], config, ranks, clock, with_stats=False).units


def where_the_time_goes(part: Part, table: Table, step: Any, batch: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([] if part.dry else [ProfilerActivity.CUDA])
    with profile(activities=activities) as found:
        step(0)
    times = timing.kernel_times(found, part.device, 1)
    total = sum(us for us, *_ in times) or 1.0
    for us, kernel, _ in times[:20]:
        table.add(what="kernel", batch=batch, kernel=kernel[:160], seconds=us * 1e-6, share=us / total)
