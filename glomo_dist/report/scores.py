"""Plots of a group's results: seeds and means per arm, learning curves, mixture weights per component."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from glomo_dist.graphs.index import DIRECTIONS
from glomo_dist.report.figures import COLOURS, legend_below, literal, new, percent_axis, style, svg
from glomo_dist.report.groups import Group
from glomo_dist.report.names import labels, one_line
from glomo_dist.report.statistics import estimate
from glomo_dist.report.table import arm_name
from glomo_dist.transfer.result import Result


def colours(group: Group) -> dict[str, str]:
    """The same colour for the same arm in all plots of a group."""
    return {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(group.arms)}


def arm_names(group: Group) -> str:
    return ", ".join(map(arm_name, group.arms))


def arm_labels(group: Group) -> list[str]:
    """As there is room for in a figure; the arms' whole names are in its title and in the table."""
    return [literal(label) for label in labels([arm_name(arm) for arm in group.arms])]


def dots_figure(group: Group) -> Markup:
    """Every seed a dot, the mean a bar across, its 95 % interval a line."""
    arms = list(group.arms)
    with style():
        figure, (axes,) = new(5.4, 0.55 + 0.42 * len(arms))
        for y, (arm, seeds) in enumerate(group.arms.items()):
            colour = colours(group)[arm]
            values = [job.result.test for job in seeds.values()]
            score = estimate(values)
            if score.low is not None and score.high is not None:
                axes.plot(
                    [score.low, score.high],
                    [y, y],
                    color=colour,
                    linewidth=2,
                    alpha=0.45,
                    solid_capstyle="butt",
                )
            assert score.mean is not None  # an arm has a seed at least
            axes.plot([score.mean, score.mean], [y - 0.26, y + 0.26], color=colour, linewidth=2)
            axes.plot(
                values, [y] * len(values), "o", color=colour, markersize=5, alpha=0.8, markeredgewidth=0
            )
        axes.set_yticks(range(len(arms)), arm_labels(group))
        axes.set_ylim(len(arms) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", linewidth=0.4, alpha=0.25)
        axes.set_xlabel(literal(f"test {one_line(group.any.result.metric)}, %"))
        percent_axis(axes)
        return svg(figure, f"Test scores of every seed and arm: {group.title} ({arm_names(group)})")


def curves_figure(group: Group) -> Markup:
    """Dev metric after each epoch: thin a seed, thick the mean of the seeds still training."""
    with style():
        figure, (axes,) = new(5.4, 2.8)
        means = []
        for arm, seeds in group.arms.items():
            colour = colours(group)[arm]
            curves = [[epoch.dev for epoch in job.result.curve] for job in seeds.values()]
            for curve in curves:
                axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=0.6, alpha=0.4)
            # An average over fewer seeds would jump where one of them stopped early.
            common = min(map(len, curves))
            mean = np.mean([curve[:common] for curve in curves], axis=0)
            means += axes.plot(range(1, common + 1), mean, "o-", markersize=3, color=colour, linewidth=2)
        axes.set_xlabel("epoch")
        axes.set_ylabel(literal(f"dev {one_line(group.any.result.metric)}, %"))
        axes.xaxis.set_major_locator(
            MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
        )
        percent_axis(axes, "y")
        # Names given here: as labels of the lines, those that begin with an underscore would be left out.
        legend_below(axes, means, arm_labels(group))
        return svg(figure, f"Learning curves: {group.title} ({arm_names(group)})")


def weights_figures(group: Group) -> list[tuple[str, Markup]]:
    """Name of each arm with graphs, and the weight of each component, mean over seeds and mixed graphs; dots are the
    single ones."""
    return [
        (arm_name(arm), _weights_figure(arm, colours(group)[arm], [job.result for job in seeds.values()]))
        for arm, seeds in group.arms.items()
        if all(job.result.mixtures for job in seeds.values())
        and len({job.result.components for job in seeds.values()}) == 1  # no mean over models of other sizes
    ]


def _weights_figure(arm: str, colour: str, results: list[Result]) -> Markup:
    names = [literal(one_line(name)) for name in results[0].components]
    at = np.arange(len(names))
    every = -(-len(names) // 16)  # more labels than that cannot be read
    with style():
        figure, axes = new(5.4, 2.1, 1, 2, sharey=True)
        for ax, direction in zip(axes, DIRECTIONS, strict=True):
            mixed = [m.weights for result in results for m in result.mixtures if m.direction == direction]
            ax.bar(at, np.mean(mixed, axis=0), color=colour, alpha=0.5, width=0.75)
            ax.plot(np.tile(at, len(mixed)), np.ravel(mixed), ".", color=colour, markersize=4)
            ax.axhline(1 / len(names), color="#8a8f98", linewidth=0.8, linestyle="--")
            ax.set_xticks(at[::every], names[::every], rotation=90, fontsize=8)
            ax.set_title(direction, fontsize=10)
            percent_axis(ax, "y")
        axes[0].set_ylabel("weight, %")
        figure.tight_layout()
        return svg(figure, f"Mixture weights per component: {arm_name(arm)}")
