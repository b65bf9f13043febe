"""Writes the tables of docs/gpu.md, and a picture of the results.

    python -m gpu.report                 the estimates, from work.py and results/triton_resources.csv
    python -m gpu.report FOLDER          and what `make gpu` measured, from the files it left in FOLDER

`make gpu` does the second when its results go to their place in the repository.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from gpu import work
from gpu.part import ROOT, read_table
from gpu.work import PUBLISHED, Work

PAGE = ROOT / "docs" / "gpu.md"
RESOURCES = ROOT / "kernels" / "benchmarks" / "results" / "triton_resources.csv"
SHAPES = ((16, 2048, 128, 128), (4, 8192, 128, 128), (4, 8192, 256, 64), (256, 200, 256, 64))


def estimates() -> str:
    rows = ["| op, bfloat16, H 8, causal | GFLOP | GB | floor, ms | limited by | our products | so at most |"]
    rows += ["|---|---:|---:|---:|---|---:|---:|"]
    for b, t, width, values in SHAPES:
        for step, made in zip(
            ("forward", "backward"), work.affinity_mix(b, 8, t, width, values), strict=True
        ):
            rows.append(_estimate(f"`affinity_mix` {width}/{values} B {b} T {t} {step}", made))
    rows.append(
        _estimate("`affinity_graph` 64, B 1 T 2048, 10 %", work.affinity_graph(1, 8, 2048, 64, 1_678_000))
    )
    edges = 4 * 40 * 400 * 20
    rows.append(
        _estimate(
            "`graph_mix` B 4, 40 components, T 400, D 300, 10 %", work.graph_mix(4, 400, 300, edges, 40)
        )
    )
    rows.append(_estimate("`decoder_loss` 1920 x 512 x 100,000", work.decoder_loss(1920, 512, 100_000)))
    return "\n".join(rows)


def _estimate(name: str, made: Work) -> str:
    floor, limit = made.floor_ms(PUBLISHED)
    ours, _ = made._replace(flops=made.done).floor_ms(PUBLISHED)
    return (
        f"| {name} | {made.flops / 1e9:,.1f} | {made.bytes / 1e9:.3f} | {floor:.4f} | {limit} | "
        f"{made.done / made.flops:.2f}x | {made.flops / ours * 1e-9:,.0f} TFLOP/s |"
    )


def resources() -> str:
    """Every candidate of the kernels at the widths of the goals on sm_90, for every Triton in the table."""
    rows = [
        "| bfloat16, sm_90 | Triton | M N warps stages | registers | spills | shared, KB | instructions |"
    ]
    rows += ["|---|---|---|---:|---:|---:|---|"]
    wanted = {"arch": "90", "dtype": "bfloat16", "kind": "relu", "theta": "True", "stats": "False"}
    for row in read_table(RESOURCES):
        widths = f"{row['width']}/{row['values']}"
        if any(row[name] != value for name, value in wanted.items()) or not row["matrix"]:
            continue
        if widths in ("256/64", "128/128"):
            rows.append(
                f"| `{row['kernel']}` {widths} | {row['triton']} | {row['config']} | {row['registers']} | "
                f"{row['spills']} | {int(row['shared']) / 1024:.0f} | {row['matrix']}, {row['copy'] or 'no copies'} |"
            )
    return "\n".join(rows)


def measured(folder: Path) -> str:
    summary = folder / "summary.txt"
    if not summary.exists():
        return "Nothing yet."
    rows = [
        "| op, shape | way | ms | TFLOP/s | of the floor | against ours | goal |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in read_table(folder / "bench.csv"):
        if row["op"] == "ceilings" or not row["ms"]:
            continue
        cells = [
            f"{row['op']} {row['shape']}",
            row["way"],
            f"{float(row['ms']):.3f}",
            f"{float(row['tflops']):.0f}",
        ]
        cells += [f"{float(row['share']):.0%}", f"{float(row['ratio']):.2f}x" if row["ratio"] else ""]
        rows.append(f"| {' | '.join(cells)} | {row['goal'] if row['way'] == 'ours' else ''} |")
    return "```\n" + summary.read_text().strip() + "\n```\n\n" + "\n".join(rows)


def draw(folder: Path) -> None:
    """folder/gpu.svg: for every case the share of the floor that each way reaches."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = [row for row in read_table(folder / "bench.csv") if row["share"]]
    if not rows:
        return
    labels = [f"{row['op']} {row['shape']}: {row['way']}" for row in rows]
    figure, axis = plt.subplots(figsize=(9, 0.22 * len(rows) + 1))
    colors = ["#1b6ca8" if row["way"].startswith("ours") else "#b9b9b9" for row in rows]
    axis.barh(range(len(rows)), [float(row["share"]) for row in rows], color=colors)
    axis.set_yticks(range(len(rows)), labels, fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel("share of the floor")
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "gpu.svg", metadata={"Date": None})


def page(text: str, blocks: dict[str, str]) -> str:
    """The text with what stands between <!-- name --> and <!-- end of name --> replaced."""
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.S)
        assert pattern.search(text), f"{PAGE} has no place for {name}"
        text = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def write(folder: Path | None) -> None:
    blocks = {"estimates": estimates(), "resources": resources()}
    if folder is not None:
        draw(folder)
        blocks["measured"] = measured(folder)
    PAGE.write_text(page(PAGE.read_text(), blocks))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    write(parser.parse_args().folder)
