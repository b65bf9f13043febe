"""What the figures of a table draw: each seed, means, intervals, curves, weights, in the place of their arm."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from result_folders import job, result, write

from glomo_dist.report import read_results, scores
from glomo_dist.report.figures import COLOURS
from glomo_dist.report.statistics import estimate
from glomo_dist.transfer.result import Epoch, MixedGraph

ARMS = {"none": (0.5, 0.6, 0.9), "pretrained": (0.7, 0.8, 0.75), "single": (0.4,)}
CURVES = {"none": ([0.1, 0.2, 0.6], [0.3, 0.4]), "pretrained": ([0.5, 0.7],)}


@pytest.fixture
def figures(monkeypatch):
    """The figures themselves instead of their pictures."""
    monkeypatch.setattr(scores, "svg", lambda figure, title: figure)
    yield
    plt.close("all")


def group_of(folder, results):
    (group,) = read_results([write(folder, results)]).groups
    return group


def test_dots_means_and_intervals(tmp_path, figures):
    """The first arm on top; of one seed there is no interval."""
    results = [
        result(job(arm, seed), test, dev=0.0, metric="f1", metrics={"f1": test})
        for arm, values in ARMS.items()
        for seed, test in enumerate(values)
    ]
    (axes,) = scores.dots_figure(group_of(tmp_path, results)).axes
    lines = iter(axes.get_lines())
    for y, (values, colour) in enumerate(zip(ARMS.values(), COLOURS, strict=False)):
        score = estimate(values)
        spans = [[score.low, score.high]] if len(values) > 1 else []
        for across in [*spans, [score.mean, score.mean], values]:
            line = next(lines)
            assert list(line.get_xdata()) == pytest.approx(list(across)) and line.get_color() == colour
            assert np.mean(line.get_ydata()) == pytest.approx(y)
    assert next(lines, None) is None
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["no graph", "pretrained graph", "single"] and axes.get_xlabel() == "test f1, %"
    top, bottom = sorted(range(3), key=lambda y: -axes.transData.transform((0, y))[1])[::2]
    assert (top, bottom) == (0, 2)


def test_curves_of_seeds_and_their_mean_while_all_of_them_train(tmp_path, figures):
    results = [
        replace(
            result(job(arm, seed), 0.5),
            curve=tuple(Epoch(i, 0.01, dev, 1.0) for i, dev in enumerate(curve, 1)),
        )
        for arm, curves in CURVES.items()
        for seed, curve in enumerate(curves)
    ]
    (axes,) = scores.curves_figure(group_of(tmp_path, results)).axes
    drawn = [(list(line.get_xdata()), line.get_ydata()) for line in axes.get_lines()]
    expected = [*CURVES["none"], [0.2, 0.3], *CURVES["pretrained"], [0.5, 0.7]]
    assert [x for x, _ in drawn] == [list(range(1, len(y) + 1)) for y in expected]
    assert [list(y) for _, y in drawn] == [pytest.approx(y) for y in expected]
    legend = axes.get_legend()
    named = {
        text.get_text(): line.get_color()
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert named == {"no graph": COLOURS[0], "pretrained graph": COLOURS[1]}


def test_weights_of_the_mixed_graphs_of_each_direction(tmp_path, figures):
    """Bars are the means over seeds and mixed graphs; too many names of components are not all written."""
    components = tuple(f"G{layer}.{head}" for layer in range(5) for head in range(4))
    weights = np.random.default_rng(0).dirichlet(np.ones(20), (3, 2))  # [seeds, directions]
    results = [result(job("none", seed), 0.5) for seed in range(3)]
    for seed, of_seed in enumerate(weights):
        mixtures = tuple(
            MixedGraph(d, 1.0, tuple(w)) for d, w in zip(("forward", "backward"), of_seed, strict=True)
        )
        results.append(result(job("mine", seed), 0.5, components=components, mixtures=mixtures))
    ((name, figure),) = scores.weights_figures(group_of(tmp_path, results))
    assert name == "mine" and [axes.get_title() for axes in figure.axes] == ["forward", "backward"]
    for axes, expected in zip(figure.axes, weights.transpose(1, 0, 2), strict=True):
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(expected.mean(0).tolist())
        dots, equal = axes.get_lines()
        assert list(dots.get_xdata()) == [*range(20)] * 3
        assert list(dots.get_ydata()) == pytest.approx(expected.flatten().tolist())
        assert list(equal.get_ydata()) == [1 / 20] * 2
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list(components[::2])


def test_more_arms_than_colours(tmp_path):
    group = group_of(tmp_path, [result(job(f"window{i}", 0), 0.5) for i in range(1, len(COLOURS) + 2)])
    assert list(scores.colours(group).values()) == [*COLOURS, COLOURS[0]]
