"""Finished results, graph stores and training sizes fit the task data as they are now, or nothing is begun."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from transfer_samples import planted_store, write_sst2

from glomo_dist.evaluate import InProcess, evaluate, plan_jobs, reader_of, require_fitting_data
from glomo_dist.evaluate.attempt import job_folder
from glomo_dist.evaluate.plan import EvaluationPlan
from glomo_dist.graphs.index import GraphStoreError
from glomo_dist.report.results import read_results
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.json_files import read_json, write_json
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.result import Result


def begin(out: Path, source: Path | str, arms=("none",), sizes=(8,), work=run, store=None, **settings):
    """store: of a further arm, "pretrained"."""
    plan = EvaluationPlan(
        tasks=("sst2",),
        arms={**{arm: arm for arm in arms}, **({"pretrained": store} if store else {})},
        seeds=(0,),
        train_sizes=sizes,
        sources={"sst2": str(source)},
        settings={"epochs": 1, "hidden": 2, **settings},
    )
    jobs = plan_jobs(plan)
    return jobs, evaluate(jobs, work, out, InProcess(), read=reader_of(jobs), check=require_fitting_data)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture
def data(tmp_path):
    write_sst2(tmp_path / "data", sizes=(16, 8, 8))
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path, data):
    """An evaluation that has finished its only job."""
    assert begin(tmp_path / "out", data)[1].finished == 1
    return tmp_path / "out"


@pytest.mark.parametrize("arms", [("none",), ("none", "uniform")])  # nothing to do, and one job
def test_changed_data_are_refused_and_nothing_is_written(out, data, arms):
    old = read_json(next(out.glob("results/*/result.json")))["fingerprints"]["data"]
    before = content(out)
    shutil.copytree(data, data.with_name("kept"))
    write_sst2(data, sizes=(16, 8, 8), seed=2)
    with pytest.raises(DataError, match=r"data have changed .* Choose another --out") as caught:
        begin(out, data, arms)
    new = "".join(str(caught.value).split("now it is ")[1]).split()[1]
    assert all(word in str(caught.value) for word in (str(out), "'sst2'", str(data), old, new)) and new != old
    assert content(out) == before
    shutil.rmtree(data)
    shutil.move(data.with_name("kept"), data)
    assert begin(out, data, arms)[1].finished_before == 1


def test_a_result_of_another_version_of_the_task_is_refused(out, data):
    """Also where others are of this one."""
    (path,) = out.glob("results/*/result.json")
    begin(out, data, ("none", "uniform"))
    write_json(path, {**read_json(path), "task_version": 0})
    with pytest.raises(DataError, match=r"\(version 0 of the task\), .* now it is"):
        begin(out, data, ("none", "uniform"))


def test_a_set_is_read_once_and_only_where_something_depends_on_it(out, data, capfd):
    sizes = (8, 9, 10)
    assert begin(out, data, sizes=sizes)[1].finished_before == 1
    jobs, summary = begin(out, data, sizes=sizes)
    assert summary.finished_before == 3
    read, path = reader_of(jobs), job_folder(out, jobs[0].id) / "result.json"
    assert read(path) is read(path)
    assert capfd.readouterr().err.count("reading the data of task 'sst2'") == 2  # once each time
    fresh = out.with_name("fresh")
    begin(fresh, data, sizes=(None,))
    assert "reading" not in capfd.readouterr().err
    begin(fresh, data, sizes=(None, *sizes), store=planted_store(out.with_name("store"), str(data)))
    assert capfd.readouterr().err.count("reading the data of task 'sst2'") == 1
    for before in (0, 1):  # of as many examples as its results are of
        assert begin(out.with_name("few"), data, sizes=(4,), max_examples=6)[1].finished_before == before


def test_results_outlive_their_data(out, data, capfd):
    shutil.rmtree(data)
    assert begin(out, data)[1].finished_before == 1
    said = capfd.readouterr().err
    assert "WARNING" in said and f"{data} does not exist" in said
    with pytest.raises(DataError, match="does not exist"):  # a job to do needs them
        begin(out, data, sizes=(8, None))


def test_a_result_that_does_not_say_its_data_is_taken(out, data):
    (path,) = out.glob("results/*/result.json")
    write_json(path, {**read_json(path), "fingerprints": {}})
    write_sst2(data, sizes=(16, 8, 8), seed=2)
    assert begin(out, data)[1].finished_before == 1


@pytest.mark.parametrize("begun", [True, False])
def test_a_train_size_beyond_the_set_is_refused_once_where_it_is_read(out, data, begun):
    out = out if begun else out.with_name("fresh")
    before = content(out)
    with pytest.raises(ConfigError, match="train_size 17, but task 'sst2' has 16 training examples"):
        begin(out, data, ("none", "uniform"), sizes=(17, 8))
    assert content(out) == before
    assert begin(out, data)[1].finished_before == begun


def test_a_store_that_does_not_fit_is_refused_before_the_plan_is_replaced(out, data):
    store = planted_store(out.with_name("store"), str(data))
    begin(out, data, store=store)
    before = content(out)
    with pytest.raises(GraphStoreError, match=r"its max_units is .* the job's is .*5"):
        begin(out, data, store=store, max_units=5)
    with pytest.raises(GraphStoreError, match="its task data fingerprint is"):
        begin(out, write_sst2(data.with_name("other"), sizes=(16, 8, 8), seed=2), store=store)
    assert content(out) == before


def test_one_set_by_two_paths_is_one_job(out, data, monkeypatch):
    (data / "below").mkdir()
    monkeypatch.chdir(data)
    for same in (data / "below" / "..", ".", f"{data}/", "below/.."):
        assert begin(out, same)[1].finished_before == 1, same
    (data.with_name("link")).symlink_to(data)  # not followed: what it names may change
    (job,), summary = begin(out, data.with_name("link"))
    assert summary.finished == 1 and job_folder(out, job.id).is_dir()


def test_a_result_that_no_job_of_this_kind_has_runs_again(data, tmp_path):
    """With a number that none can have, and that of another job; as `glomo report` refuses them."""
    out = tmp_path / "out"
    (none, uniform), _ = begin(out, data, ("none", "uniform"))
    path, other = (job_folder(out, job.id) / "result.json" for job in (none, uniform))
    whole = path.read_bytes()
    path.write_text(json.dumps({**json.loads(whole), "metrics": {"accuracy": 7.0}}))
    with pytest.raises(DataError, match=r"result\.json: metrics must be a share in \[0, 1\], got 7\.0"):
        read_results([out])
    path.write_text(json.dumps({**json.loads(whole), "test": math.nan}))
    with pytest.raises(DataError, match=r"result\.json: test must be a share in \[0, 1\], got nan"):
        read_results([out])
    assert (
        begin(out, data, ("none", "uniform"))[1].finished,
        path.with_suffix(".json.unreadable").exists(),
    ) == (
        1,
        True,
    )
    other.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"result\.json: is the result of another job .*'none'.*'uniform'"):
        read_results([out])
    assert begin(out, data, ("none", "uniform"))[1].finished == 1
    assert json.loads(other.read_text())["arm"] == "uniform"


def test_a_task_without_its_source_is_refused_before_the_others_run(data, tmp_path):
    plan = EvaluationPlan(
        tasks=("sst2", "imdb"),
        arms={"none": "none"},
        seeds=(0,),
        sources={"sst2": str(data)},
        settings={"epochs": 1, "hidden": 2},
    )
    out = tmp_path / "out"
    with pytest.raises(DataError, match="task 'imdb' needs a source"):
        evaluate(plan_jobs(plan), run, out, InProcess(), read=Result.read, check=require_fitting_data)
    assert not list(out.glob("results/*/*"))
