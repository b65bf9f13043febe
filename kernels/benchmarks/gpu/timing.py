"""Time on the device: events around many calls, medians over rounds in which all ways take turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from gpu.work import Ceilings

Run = Callable[[], object]
ROUND_MS = 30.0  # of one way in one round


def milliseconds(run: Run, repeats: int, device: str) -> float:
    """Per call, over `repeats` calls."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) * 1e3 / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def measure(runs: dict[str, Run], device: str, rounds: int = 7) -> dict[str, list[float]]:
    """Milliseconds per call of every way in every round; on a GPU each is called a few times before."""
    repeats = dict.fromkeys(runs, 1)
    if device != "cpu":
        for name, run in runs.items():
            once = min(milliseconds(run, 1, device) for _ in range(4))
            repeats[name] = max(1, min(200, round(ROUND_MS / max(once, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 if device == "cpu" else rounds):
        for name, run in runs.items():
            times[name].append(milliseconds(run, repeats[name], device))
    return times


def kernel_times(found: Any, device: str, calls: int) -> list[tuple[float, str, float]]:
    """(microseconds, kernel, launches) per call from a torch profile, longest first; on a CPU operators."""
    times = []
    for event in found.key_averages():
        if device == "cpu":
            us = event.self_cpu_time_total
        elif event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            # of kernels alone: operators, and what encloses them under a name, repeat their time
            us = event.self_device_time_total
        else:
            continue
        if us > 0:
            times.append((us / calls, event.key, event.count / calls))
    return sorted(times, reverse=True)


def in_a_graph(run: Run) -> Run:
    """The same work as one CUDA graph. Call `run` before: nothing may be compiled or tuned while it is captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peak_mb(run: Run, device: str) -> float:
    """MB of device memory that a call takes at most beyond what is there before; NaN on a CPU."""
    if device == "cpu":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def ceilings(device: str) -> Ceilings:
    """Of this machine: a copy of memory far larger than its caches, large products of random numbers."""
    small = device == "cpu"
    source = torch.empty((1 << 24) if small else (1 << 32), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = median(measure({"copy": lambda: target.copy_(source)}, device)["copy"])
    rates = []
    for dtype, size in ((torch.bfloat16, 128 if small else 8192), (torch.float32, 128 if small else 4096)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        took = median(measure({"product": lambda a=a, b=b: a @ b}, device)["product"])
        rates.append(2 * size**3 / took * 1e-9)
    return Ceilings(2 * source.numel() / copy * 1e-6, *rates)
