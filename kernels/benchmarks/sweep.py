"""Time and memory of affinity_mix against T, for all ways to it: python kernels/benchmarks/sweep.py [--threads N]

Writes results/cpu_sweep.csv and, beside it, cpu_sweep.svg: forward and backward, B 1, H 8, causal, 256/64, float32.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
from pathlib import Path

import matplotlib
import torch
from cases import affinity_mix
from run import measure, peak_memory, processor

matplotlib.use("svg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SIZES = (128, 256, 512, 1024, 2048, 4096)
COLORS = ("#9a9a9a", "#c98a2b", "#1b6ca8", "#7a5ea8", "#3c8d5a")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for units in SIZES:
        torch.manual_seed(0)
        case = affinity_mix(1, 8, units, 256, 64)
        runs = {**case.runs, **case.peers}
        for run in runs.values():
            run()
        memory = {name: peak_memory(run) for name, run in runs.items()}
        for name, times in measure(runs, options.rounds).items():
            middle = statistics.median(times)
            rows.append([units, name, f"{middle:.3f}", f"{memory[name]:.1f}"])
            print(f"T {units:5}  {name:16} {middle:9.2f} ms  {memory[name]:8.1f} MB", flush=True)
    RESULTS.mkdir(exist_ok=True)
    where = [options.threads, processor(), torch.__version__, datetime.date.today().isoformat()]
    with (RESULTS / "cpu_sweep.csv").open("w", newline="") as file:
        header = ["T", "run", "p50_ms", "peak_mb", "threads", "cpu", "torch", "date"]
        csv.writer(file).writerows([header, *(row + where for row in rows)])
    draw(rows, RESULTS / "cpu_sweep.svg")


def draw(rows: list[list], path: Path) -> None:
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "glomo"})
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
    names = list(dict.fromkeys(row[1] for row in rows))
    for axis, column, label in ((axes[0], 2, "time, ms"), (axes[1], 3, "peak memory, MB")):
        for name, color in zip(names, COLORS, strict=False):
            points = [(row[0], float(row[column])) for row in rows if row[1] == name]
            ours = name == "cpp"
            axis.plot(
                *zip(*points, strict=True), marker="o", markersize=3.5, color=color,
                linewidth=2.4 if ours else 1.3, label="affinity_mix (C++)" if ours else name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="T", ylabel=label, xticks=SIZES)
        axis.set_xticklabels(SIZES)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
