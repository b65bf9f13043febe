"""Pretraining runs in the report: loss, and the share of units without any edge, per layer and head."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from glomo_dist.report.figures import COLOURS, new, percent, smooth, style, svg
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.files import read_json


@dataclass(frozen=True)
class Run:
    """rows: those of log.jsonl with a loss, one per logged step, ascending."""

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        total = 0.0
        before = 0
        for row in self.rows:
            # An older log has the seconds of its logged steps alone; those between them took about as long.
            steps = 1 if "units_per_second" in row else row["step"] - before
            total += steps * _seconds(row)
            before = row["step"]
        return total


def read_run(folder: str | Path) -> Run:
    """A run folder of `glomo pretrain`; DataError naming the file, and the line, if it cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is no folder. Give the folder of a pretraining run.")
    config = read_json(folder / "config.json")
    path = folder / "log.jsonl"
    if not path.exists():
        raise DataError(
            f"{path} does not exist. Give the folder of a pretraining run (glomo pretrain --out)."
        )
    steps: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            if number == len(lines):
                break  # a run that is still writing, or was killed while it did
            raise DataError(f"{path}, line {number}: not valid JSON ({e.msg}).") from None
        if isinstance(row, dict) and "step" in row and row.get("loss") is not None:  # null: it was not finite
            steps[int(row["step"])] = row  # steps after the last checkpoint are logged again on resume
    if not steps:
        raise DataError(
            f"{path}: no row with a step and a loss. The run has not begun, or this is another file."
        )
    return Run(folder, config, [steps[step] for step in sorted(steps)])


def loss_figure(run: Run) -> Markup:
    """Training loss: thin as logged, thick smoothed; validation as dots."""
    with style():
        figure, (axes,) = new(5.4, 2.8)
        steps, losses = [r["step"] for r in run.rows], [r["loss"] for r in run.rows]
        axes.plot(steps, losses, color=COLOURS[0], linewidth=0.6, alpha=0.4)
        axes.plot(
            steps,
            smooth(losses, max(5, len(losses) // 25)),
            color=COLOURS[0],
            linewidth=1.8,
            label="training",
        )
        valid = [(r["step"], r["valid_loss"]) for r in run.rows if r.get("valid_loss") is not None]
        if valid:
            axes.plot(*zip(*valid, strict=True), "o", color=COLOURS[1], markersize=4, label="validation")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("nats per predicted unit")
        return svg(figure, f"Pretraining loss of {run.folder.name} against the optimizer step")


def empty_rows_figure(run: Run) -> Markup | None:
    """Share of units with no edge at all (they carry no gradient), one line per layer and head."""
    rows = [
        (row["step"], np.asarray(values, float))
        for row in run.rows
        if (values := _empty_rows(row)) is not None
    ]
    if not rows:
        return None
    steps = [step for step, _ in rows]
    shares = np.stack([values.reshape(-1, *values.shape[-2:]).mean(0) for _, values in rows])  # [steps, L, K]
    with style():
        figure, (axes,) = new(5.4, 2.8)
        for layer in range(shares.shape[1]):
            colour = COLOURS[layer % len(COLOURS)]
            for head in range(shares.shape[2]):
                axes.plot(steps, shares[:, layer, head], color=colour, linewidth=0.7, alpha=0.5)
            axes.plot(
                steps,
                shares[:, layer].mean(1),
                color=colour,
                linewidth=2,
                label=f"layer {layer}, mean of heads",
            )
        axes.set_ylim(0, 1)
        percent(axes, "y")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("units without edges, %")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)
        return svg(figure, "Share of units without edges against the optimizer step, per layer and head")


def _empty_rows(row: dict[str, Any]) -> Any:
    return row.get("empty_rows", row.get("stats", {}).get("empty_rows"))


def _seconds(row: dict[str, Any]) -> float:
    seconds = row.get("seconds", 0.0)
    return float(sum(seconds.values()) if isinstance(seconds, dict) else seconds or 0.0)
