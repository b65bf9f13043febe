"""Where the time goes: the kernels of a call from torch's profiler, and Nsight Compute's view of ours where it is."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from glomo_kernels import affinity_graph, affinity_mix, graph_mix
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from gpu import timing
from gpu.part import Part, Table

COLUMNS = ("what", "tool", "kernel", "calls", "us", "share", "metric", "value")
CALLS = 3
SECTIONS = (
    "SpeedOfLight",
    "Occupancy",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "WarpStateStats",
)
OURS = "regex:forward_kernel|query_kernel|key_kernel|count_kernel|fill_kernel|select_kernel|combine_kernel"


def mix(part: Part, b: int, t: int, width: int, values: int) -> Callable[[], object]:
    """Forward and backward of affinity_mix, causal, with thresholds."""
    h, dtype = (1, torch.float32) if part.dry else (8, torch.bfloat16)
    q, k = (torch.randn(b, h, t, width, device=part.device, dtype=dtype) / width**0.25 for _ in range(2))
    v = torch.randn(b, h, t, values, device=part.device, dtype=dtype)
    inputs = [x.requires_grad_() for x in (q, k, v, torch.ones(b, h, t, device=part.device, dtype=dtype))]

    def run() -> object:
        mixed = affinity_mix(*inputs)
        return torch.autograd.grad(mixed, inputs, torch.ones_like(mixed))

    return run


def graphs(part: Part, t: int) -> Callable[[], object]:
    """affinity_graph with `keep`, and graph_mix with its gradients."""
    h = 1 if part.dry else 40
    q, k = (torch.randn(1, h, t, 64, device=part.device) / 64**0.25 for _ in range(2))
    weights = torch.randn(1, t, h, device=part.device, requires_grad=True)
    features = torch.randn(1, t, 300, device=part.device, requires_grad=True)

    def run() -> object:
        graph = affinity_graph(q, k, keep=64)
        return torch.autograd.grad(graph_mix(graph, weights, features).sum(), (weights, features))

    return run


def workloads(part: Part) -> dict[str, Callable[[], Callable[[], object]]]:
    if part.dry:
        return {"mix B1 T64": lambda: mix(part, 1, 64, 16, 16), "graphs T64": lambda: graphs(part, 64)}
    return {
        "mix B4 T8192 128/128": lambda: mix(part, 4, 8192, 128, 128),
        "mix B4 T8192 256/64": lambda: mix(part, 4, 8192, 256, 64),
        "mix B256 T200 256/64": lambda: mix(part, 256, 200, 256, 64),
        "graphs T2048": lambda: graphs(part, 2048),
    }


def main(part: Part) -> None:
    torch.manual_seed(0)
    with part.table("profile", COLUMNS) as table:
        for what, make in part.steps(workloads(part).items()):
            kernels(part, table, what, make())
        for read in part.steps([counters]):
            read(part, table)


def kernels(part: Part, table: Table, what: str, run: Callable[[], object]) -> None:
    """The longest kernels of `run`: on a CPU the longest operators."""
    for _ in range(1 if part.dry else 3):
        run()
    activities = [ProfilerActivity.CPU] + ([] if part.dry else [ProfilerActivity.CUDA])
    with profiler(activities=activities) as found:
        for _ in range(CALLS):
            run()
        if not part.dry:
            torch.cuda.synchronize()
    times = timing.kernel_times(found, part.device, CALLS)
    total = sum(us for us, *_ in times) or 1.0
    for us, name, calls in times[:25]:
        table.add(what=what, tool="torch", kernel=name[:160], calls=calls, us=us, share=us / total)
    longest = ", ".join(f"{name[:28]} {us / total:.0%}" for us, name, _ in times[:4])
    part.note(f"{what}: {total / 1e3:.3f} ms in kernels: {longest}")


def counters(part: Part, table: Table) -> None:
    """What Nsight Compute reads of the multiprocessors, without touching the clocks."""
    tool = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if part.dry or tool is None or part.left() < 15:
        part.note("hardware counters: " + ("not in a dry run" if part.dry else "no ncu, or no time left"))
        return
    command = [
        tool, "--clock-control", "none", "--csv", "--page", "details", "-k", OURS, "-c", "12",
        *(word for section in SECTIONS for word in ("--section", section)), sys.executable, "-m", "gpu.profile",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=max(10.0, part.left() - 5)
        )
    except subprocess.TimeoutExpired:
        part.note("hardware counters: not finished in time")
        return
    lines = done.stdout.splitlines()
    header = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        part.note(
            f"hardware counters: ncu gave none, exit code {done.returncode}: {(lines or ['?'])[-1][:100]}"
        )
        return
    rows = list(csv.DictReader(lines[header:]))
    for row in rows:
        table.add(
            what=f"launch {row['ID']}", tool="ncu", kernel=row["Kernel Name"][:80], metric=row["Metric Name"],
            value=f"{row['Metric Value']} {row['Metric Unit']}".strip(),
        )  # fmt: skip
    for row in rows:
        if row["Metric Name"] == "Compute (SM) Throughput":
            part.note(f"ncu {row['Kernel Name'][:24]}: {row['Metric Value']} % of the multiprocessors' peak")


if __name__ == "__main__":  # under ncu: one call of each; the first configuration, so that nothing is timed
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    alone = Part(Path(os.devnull), Path(os.devnull), False, 0.0)
    for each in workloads(alone).values():
        each()()
    torch.cuda.synchronize()
