"""Parts of figures: ticks, letters, labels, the edges that are drawn."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from result_folders import job, result, write

from glomo_dist.report import read_results
from glomo_dist.report.drawings import Example, strongest, words_figure
from glomo_dist.report.names import labels, text_width
from glomo_dist.report.scores import curves_figure
from glomo_dist.transfer.result import Epoch


def test_the_only_epoch_has_a_tick_and_no_others(tmp_path):
    one = [replace(result(job("none", seed), 0.5), curve=(Epoch(1, 0.7, 0.5, 1.0),)) for seed in range(2)]
    (group,) = read_results([write(tmp_path / "in", one)]).groups
    ticks = re.findall(r'id="xtick_\d+">.*?<text[^>]*>([^<]+)</text>', curves_figure(group), re.DOTALL)
    assert ticks == ["1"]


@pytest.mark.filterwarnings("error")
def test_words_that_matplotlib_has_no_letters_for():
    """The browser has them; an arc begins where such a wide word ends."""
    graph = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    example = Example(None, graph, np.zeros_like(graph))
    pictures = [words_figure(words, example) for words in (["\u8bed" * 8, "b", "c"], ["a" * 16, "b", "c"])]
    assert "\u8bed" * 8 in pictures[0]
    sizes = [re.search(r'viewBox="([^"]+)"', picture)[1] for picture in pictures]
    assert sizes[0] == sizes[1]


def test_labels_fit_and_differ():
    assert labels(["a" * 24, "b" * 25]) == ["a" * 24, "b" * 12 + "…" + "b" * 11]
    assert labels(["c" * 30, "c" * 31]) == ["c" * 12 + "…" + "c" * 11 + end for end in (" (1)", " (2)")]
    assert text_width(labels(["\u8bed" * 20])[0]) in (23, 24)


def test_strongest_edges():
    graph = np.array([[0, 0, 0], [0.5, 0, 0], [0.1, 0.9, 0]])
    assert strongest(graph, 2) == [(1, 0, 0.5), (2, 1, 0.9)]
    assert len(strongest(graph, 9)) == 3, "an entry of zero is no edge"
