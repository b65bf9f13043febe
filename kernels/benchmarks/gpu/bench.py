"""The ceilings of this machine, then every op against its peers: results first, then time.

Each way is compared with float64 before it is timed, and ours is not timed where it is wrong. TFLOP/s are of the
FLOPs that must be done (work.py), `share` is the floor's time over the measured one, `ratio` the median within a
round of this way's time over ours.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import traceback
from statistics import median

import torch

from gpu import gpu_cases, timing, wheels
from gpu.gpu_cases import GpuCase, Sizes
from gpu.part import Part
from gpu.work import Ceilings

COLUMNS = (
    "op", "shape", "way", "ms", "low_ms", "high_ms", "tflops", "gb_s", "floor_ms", "limit", "share", "ratio",
    "peak_mb", "error", "goal", "failure",
)  # fmt: skip
WORST = 0.02  # relative error in half precision; bf16 operands give 0.002 to 0.01
# How the names of the ways begin that compute what ours does.
SAME = (
    "ours", "eager", "torch.compile", "FlexAttention", "dense", "F.cross_entropy", "Liger", "torch.sparse",
)  # fmt: skip


def main(part: Part) -> None:
    try:
        wheels.use(part)  # for Liger
    except (subprocess.CalledProcessError, OSError) as e:
        part.note(f"Liger is left out: its wheel cannot be installed ({e})")
    torch.manual_seed(0)
    found = timing.ceilings(part.device)
    part.note(
        f"ceilings: copy {found.copy:,.0f} GB/s, bf16 products {found.half:,.0f} TFLOP/s, "
        f"float32 {found.single:,.0f}"
    )
    wrong = []
    with part.table("bench", COLUMNS) as table:
        if not part.first:
            table.add(
                op="ceilings", shape="copy GB/s, bf16 and float32 TFLOP/s", way="torch", gb_s=found.copy,
                tflops=found.half, ms=found.single,
            )  # fmt: skip
        for make in part.steps(gpu_cases.every(Sizes(part.dry))):
            if part.left() < 5:
                part.note("no time for the rest of the cases")
                break
            try:
                rows = case_rows(make(), found, part)
            except Exception:
                traceback.print_exc()
                wrong.append("a case")
                part.note(f"FAILED: {traceback.format_exc().splitlines()[-1][:100]}")
                continue
            for row in rows:
                table.add(**row)
                if row.get("failure") and row["way"].startswith("ours"):
                    wrong.append(f"{row['op']} {row['shape']}")
            part.note(line(rows))
            gc.collect()
            if not part.dry:
                torch.cuda.empty_cache()
    if wrong:
        sys.exit(f"wrong or failed: {'; '.join(wrong)}")


def case_rows(case: GpuCase, found: Ceilings, part: Part) -> list[dict[str, object]]:
    """One row per way; those that fail or are wrong have a `failure` and no time."""
    runs, rows = {}, {}
    floor, limit = case.work.floor_ms(found)
    for name, make in case.ways.items():
        row = {
            "op": case.op,
            "shape": case.shape,
            "way": name,
            "floor_ms": floor,
            "limit": limit,
            "goal": case.goal,
        }
        rows[name] = row
        part.alive()
        if runs and part.left() < 5:
            row["failure"] = "no time"
            continue
        try:
            run = make()
            result = run()
            if name.startswith(SAME) and result is not None:
                row["error"] = case.check(result)
                if name.startswith("ours") and not row["error"] < WORST:
                    row["failure"] = f"wrong: relative error {row['error']:.2g}"
                    continue
            del result
            row["peak_mb"] = timing.peak_mb(run, part.device)
            runs[name] = run
        except Exception as error:
            row["failure"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    part.alive()
    times = timing.measure(runs, part.device, rounds=5)
    for name, all_of in times.items():
        ms = median(all_of)
        rows[name] |= {
            "ms": ms, "low_ms": min(all_of), "high_ms": max(all_of), "tflops": case.work.flops / ms * 1e-9,
            "gb_s": case.work.bytes / ms * 1e-6, "share": floor / ms,
        }  # fmt: skip
        if "ours" in times:
            rows[name]["ratio"] = median(a / b for a, b in zip(all_of, times["ours"], strict=True))
    return list(rows.values())


def line(rows: list[dict[str, object]]) -> str:
    """The case in one line: ours first, then the factor to each peer."""
    ours = rows[0]
    if "ms" not in ours:
        return f"{ours['op']} {ours['shape']}: {ours.get('failure')}"
    text = f"{ours['op']} {ours['shape']}: {ours['ms']:.3f} ms, {ours['tflops']:.0f} TFLOP/s, "
    text += f"{ours['share']:.0%} of the floor ({ours['limit']})"
    peers = [f"{r['way']} {r['ratio']:.2f}x" if "ratio" in r else f"{r['way']} failed" for r in rows[1:]]
    goal = f"; goal {ours['goal']}" if ours["goal"] else ""
    return text + (f"; {', '.join(peers)}" if peers else "") + goal
