"""Pretraining runs: their names, their logs, and damaged ones by file and line."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from run_folders import log_row, run_folder

from glomo_dist.report import provenance
from glomo_dist.report.figures import smooth
from glomo_dist.report.results import Results
from glomo_dist.report.runs import read_runs
from glomo_dist.runtime.errors import DataError

ROWS = [log_row(1), log_row(2)]


def test_names_tell_runs_apart_and_a_run_counts_once(tmp_path, monkeypatch):
    for path in ("a/1/run", "a/2/run", "b/2/run", "other"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        run_folder(tmp_path / path, ROWS)
    monkeypatch.chdir(tmp_path / "a" / "1" / "run")
    given = [".", tmp_path / "a/2/run", "../../../b/2/run", tmp_path / "a/1/run", tmp_path / "other"]
    assert [run.name for run in read_runs(given)] == ["1/run", "a/2/run", "b/2/run", "other"]
    assert [run.name for run in read_runs(["."])] == ["run"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "x"}, "loss must be a number, got 'x'"),
        ({"loss": [1.0]}, "loss must be a number"),
        ({"valid_loss": {}}, "valid_loss must be a number"),
        ({"step": "x"}, "step must be a whole number, got 'x'"),
        ({"step": True}, "step must be a whole number, got 'True'"),
        ({"step": 10**400}, "step must be a whole number"),
        ({"seconds": "x"}, "seconds must be a number"),
        ({"seconds": math.nan}, "seconds must be finite"),
        ({"empty_rows": []}, r"empty_rows must be numbers per layer and head, got '\[\]'"),
        ({"empty_rows": [[]]}, "empty_rows must be numbers per layer and head"),
        ({"empty_rows": [[0.1], [0.1, 0.2]]}, "empty_rows must be numbers per layer and head"),
        ({"empty_rows": [[[0.1, 0.2], [0.3, 0.4]]]}, "empty_rows must be numbers per layer and head"),
        ({"empty_rows": [[10**400]]}, "empty_rows must be numbers per layer and head"),
        ({"empty_rows": {}}, "empty_rows must be numbers per layer and head"),
        ({"empty_rows": [[0.1, 0.2]]}, r"empty_rows of shape \(1, 2\), before of shape \(2, 2\)"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, changes, message):
    run = run_folder(tmp_path / "run", [log_row(1), {**log_row(2), **changes}])
    with pytest.raises(DataError, match=rf"run/log\.jsonl, line 2: {message}.* delete the line"):
        read_runs([run])


@pytest.mark.parametrize(
    "config", [[1], None, {"data": None}, {"data": {"folder": 5}}, {"command": ["glomo"]}]
)
def test_a_damaged_configuration_is_named(tmp_path, config):
    run = run_folder(tmp_path / "run", ROWS)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"run/config\.json: not the configuration .* leave the run out"):
        read_runs([run])


def test_a_log_that_is_a_folder_is_named(tmp_path):
    run = run_folder(tmp_path / "run", ROWS)
    (run / "log.jsonl").unlink()
    (run / "log.jsonl").mkdir()
    with pytest.raises(DataError, match=r"log\.jsonl cannot be read"):
        read_runs([run])


def test_losses_that_are_not_finite_are_left_out(tmp_path):
    rows = [
        log_row(1),
        *(log_row(2 + i, loss=loss) for i, loss in enumerate((None, math.nan, math.inf, 1e300))),
    ]
    (run,) = read_runs([run_folder(tmp_path / "run", [*rows, log_row(9, valid_loss=math.nan)])])
    assert [row.step for row in run.rows] == [1, 9]


def test_a_run_that_was_resumed_and_goes_on(tmp_path):
    """What was done again counts as it was done last; a row of no step says nothing, a cut one is to come."""
    rows = [log_row(10, loss=3.0), log_row(30, loss=1.0), log_row(20, loss=2.0), log_row(30, loss=0.5)]
    folder = run_folder(tmp_path / "run", [{"note": "of somebody"}, *rows])
    with open(folder / "log.jsonl", "ab") as log:
        log.write('{"step": 40, "note": "é'.encode()[:-1])
    (run,) = read_runs([folder])
    assert [(row.step, row.loss) for row in run.rows] == [(10, 3.0), (20, 2.0), (30, 0.5)]
    assert run.steps == 30


def test_a_run_without_a_loss_has_not_begun(tmp_path):
    for rows in ([], [log_row(1, loss=None)]):
        with pytest.raises(DataError, match=r"no row with a step and a loss\. The run has not"):
            read_runs([run_folder(tmp_path / f"{len(rows)}", rows)])


def test_skipped_steps_are_counted_and_are_steps(tmp_path):
    rows = [log_row(1, applied=True), log_row(2, loss=None, applied=False, empty_rows=None)]
    # 3: its gradient was not finite
    rows += [log_row(3, applied=False), log_row(4, loss=None, applied=False)]
    (run,) = read_runs([run_folder(tmp_path / "run", rows)])
    assert (run.steps, run.skipped, [row.step for row in run.rows], run.seconds) == (4, 3, [1, 3], 2.0)
    _, pretraining = provenance.facts(Results([], []), [run], {})[:2]
    assert pretraining.details.startswith("4 steps (3 of them skipped), ranks: 2, ")
    (run,) = read_runs([run_folder(tmp_path / "other", ROWS)])
    assert provenance.facts(Results([], []), [run], {})[1].details.startswith("2 steps, ranks: 2, ")


@pytest.mark.parametrize(("count", "width"), [(1, 5), (3, 5), (40, 5), (41, 6), (200, 8)])
def test_a_running_mean_is_the_mean_of_neighbours(count, width):
    values = np.random.default_rng(count).normal(3, 1, count).tolist()
    half = width // 2
    means = [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(count)]
    assert smooth(values, width) == pytest.approx(means, rel=1e-12)


def test_a_running_mean_of_many_values_is_fast():
    began = time.perf_counter()
    smooth([1.0] * 100_000, 4_000)
    assert time.perf_counter() - began < 2
