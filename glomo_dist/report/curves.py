"""Plots of a pretraining run: its loss, and the share of units without any edge, per layer and head."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from glomo_dist.report.figures import COLOURS, legend_below, new, percent_axis, smooth, style, svg
from glomo_dist.report.runs import Run


def loss_figure(run: Run) -> Markup:
    """Training loss: thin as logged, thick smoothed; validation as dots."""
    with style():
        figure, (axes,) = new(5.4, 2.8)
        steps, losses = [row.step for row in run.rows], [row.loss for row in run.rows]
        axes.plot(steps, losses, color=COLOURS[0], linewidth=0.6, alpha=0.4)
        axes.plot(
            steps,
            smooth(losses, max(5, len(losses) // 25)),
            color=COLOURS[0],
            linewidth=1.8,
            label="training",
        )
        valid = [(row.step, row.valid_loss) for row in run.rows if not math.isnan(row.valid_loss)]
        if valid:
            axes.plot(*zip(*valid, strict=True), "o", color=COLOURS[1], markersize=4, label="validation")
            legend_below(axes)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("nats per predicted unit")
        return svg(figure, f"Pretraining loss of {run.name} against the optimizer step")


def empty_rows_figure(run: Run) -> Markup | None:
    """Share of units with no edge at all (they carry no gradient), one line per layer and head."""
    steps = [row.step for row in run.rows if row.empty_rows is not None]
    if not steps:
        return None
    shares = np.stack([row.empty_rows for row in run.rows if row.empty_rows is not None])  # [steps, L, K]
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
        percent_axis(axes, "y")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("units without edges, %")
        legend_below(axes)
        return svg(
            figure,
            f"Share of units without edges of {run.name} against the optimizer step, per layer and head",
        )
