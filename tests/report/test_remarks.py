"""What the report says beside and below the tables."""

from __future__ import annotations

import re

import numpy as np
import pytest
from result_folders import id_of, job, result, write
from transfer_samples import store_meta

from glomo_dist.graphs.export import export_graphs
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.report import as_text, build
from glomo_dist.report.provenance import facts
from glomo_dist.report.results import Results
from glomo_dist.transfer.features.coverage import Unknown


def page_and_text(tmp_path, rows):
    """Both as plain text with single spaces."""
    results = build([write(tmp_path / "in", rows)], tmp_path / "report.html")
    page = re.sub(r"<[^>]*>", "", (tmp_path / "report.html").read_text())
    return re.sub(r"\s+", " ", page), as_text(results)


def test_words_without_a_vector(tmp_path):
    """One old result of the table does not know it."""
    rows = [result(job(arm, 0), 0.5, without_vector=Unknown(0.025, 0.4)) for arm in ("uniform", "pretrained")]
    page, text = page_and_text(tmp_path, [result(job("none", 0), 0.5), *rows])
    assert "5 test examples, 2 classes" in page
    assert page.count("2.50 % of the words have no vector (40.00 % of the distinct ones).") == 1
    assert "no vector" not in text


def test_mostly_words_without_a_vector(tmp_path):
    page, text = page_and_text(tmp_path, [result(job("none", 0), 0.5, without_vector=Unknown(0.6, 0.9))])
    for shown in (page, text):
        assert (
            "sst2, learned vectors: 60.00 % of the words have no vector (90.00 % of the distinct ones)."
            in shown
        )


def test_old_results_say_nothing_of_words(tmp_path):
    assert "vector (" not in page_and_text(tmp_path, [result(job("none", 0), 0.5)])[0]


def test_words_that_predictors_do_not_know(tmp_path):
    rows = [
        result(job(arm, seed), 0.5, unknown_to_predictor=share)
        for arm, share in (("none", None), ("random", 0.125), ("pretrained", 0.125), ("other", 0.75))
        for seed in (0, 1)
    ]
    page, text = page_and_text(tmp_path, rows)
    assert (
        page.count(
            "12.50 % of the words are not in the vocabulary of the predictor (arms random, pretrained)."
        )
        == 1
    )
    assert text.count("75.00 % of the words are not in the vocabulary of the predictor (arm other).") == 1
    assert "12.50 %" not in text


def test_examples_that_were_left_out(tmp_path):
    skipped = {"train: answer not at its place in the paragraph": 1300, "dev: no gold label (-)": 2}
    page, _ = page_and_text(
        tmp_path, [result(job(arm, 0), 0.5, skipped=skipped) for arm in ("none", "uniform")]
    )
    said = "Left out: 1,300 train: answer not at its place in the paragraph, 2 dev: no gold label (-)."
    assert page.count(said) == 1


def test_nothing_left_out(tmp_path):
    assert "left out" not in page_and_text(tmp_path, [result(job("none", 0), 0.5)])[0].lower()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"none": (43165,), "random": (43153,), "pretrained": (43165,)},
            "none, pretrained: 43,165; random: 43,153",
        ),
        ({"none": (90,), "random": (90, 95)}, "none: 90; random: 90 or 95"),
        ({"none": (90, 95), "random": (90, 95)}, "none, random: 90 or 95"),
        ({"none": (90, 90), "random": (90, 90)}, None),
    ],
)
def test_arms_of_other_sizes_are_said_once(tmp_path, sizes, said):
    """Only within a table: another task may have more."""
    rows = [
        result(job(arm, seed), 0.5, parameters=count)
        for arm, counts in sizes.items()
        for seed, count in enumerate(counts)
    ]
    rows.append(result(job("none", 0, task="imdb"), 0.5, parameters=7))
    for shown in page_and_text(tmp_path, rows):
        if said is None:
            assert "number of parameters" not in shown
        else:
            words = f"sst2, learned vectors: the arms do not have the same number of parameters ({said})"
            assert shown.count(words) == shown.count("number of parameters") == 1


def test_arms_of_other_versions_of_the_program_are_said_once(tmp_path):
    """Not where each seed has the same one in all arms, and not of two tables."""
    rows = [result(job(arm, seed), 0.5, code=f"0.{seed}") for arm in ("none", "uniform") for seed in (1, 2)]
    rows.append(result(job("none", 0, task="imdb"), 0.5, code="0.3"))
    for shown in page_and_text(tmp_path, rows):
        assert "versions of the program" not in shown
    rows.append(result(job("window3", 1), 0.5, code="0.1"))
    for shown in page_and_text(tmp_path, rows):
        said = "sst2, learned vectors: the arms were run by different versions of the program (0.1, 0.2)"
        assert shown.count(said) == shown.count("versions of the program") == 1


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({"predictor": "random", "random_seed": 3}, "random predictor, seed 3, 2 layers, 2 heads"),
        ({"predictor": "trained", "unknown_words": 0.0625}, "trained predictor, 2 layers, 2 heads"),
    ],
)
def test_stores_say_what_predictor_they_are_of(tmp_path, recorded, said):
    meta = store_meta("digits", "d", **recorded)
    predictor = Glomo(GlomoConfig(vocab_size=4, width=8, heads=2, layers=2))
    store = export_graphs(predictor, {"test.image": [np.array([1, 2])]}, tmp_path / "store", meta=meta)
    (fact,) = facts(Results([], []), [], {store: GraphStore.open(store)})
    assert fact.details.startswith(said)
    assert ("6.25 % of the task's words unknown" in fact.details) == ("unknown_words" in recorded)


def test_an_error_of_many_jobs_is_shown_once(tmp_path):
    """With their number and the first of them; another error has its own place, after it."""
    failed = {job("uniform", 99): "MemoryError: 2 GB"}
    failed |= {job("pretrained", seed): "DataError: no vector" for seed in range(36)}
    folder = write(tmp_path / "in", [result(job("none", 0), 0.5)], failed)
    text = as_text(build([folder], tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    first = id_of(job("pretrained", 0))
    assert "37 jobs failed: " in text and ">37 failed</a>" in page
    assert f"{first} and 35 others: DataError: no vector; {id_of(job('uniform', 99))}: MemoryError" in text
    assert f"<code>{first} and 35 others</code>" in page
    assert text.count("no vector") == 1 and page.count("<details>") == 2
