"""From a description to jobs: the cross product, stable ids, graphs that fit."""

from __future__ import annotations

import dataclasses
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from encoder_samples import write_bert
from transfer_samples import store_meta

from glomo_dist.evaluate.plan import EvaluationPlan, plan_jobs
from glomo_dist.graphs.export import export_graphs
from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import CheckpointError, ConfigError, DataError
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.transfer.registry import TASKS, get_task


def store(folder, task="digits", model="m1", data="d1", heads=2, layers=2, **recorded):
    torch.manual_seed(0)
    predictor = Glomo(GlomoConfig(vocab_size=4, width=8, heads=heads, layers=layers))
    splits = {f"{name}.image": [np.array([1, 2, 3], np.int32)] for name in ("train", "dev", "test")}
    return str(export_graphs(predictor, splits, folder, meta=store_meta(task, data, model, **recorded)))


def test_every_combination_once_and_ids_are_stable(tmp_path):
    graphs = store(tmp_path / "graphs")
    plan = EvaluationPlan(
        tasks=("digits", "docstring"),
        arms={"none": "none", "window3": "window3"},
        features=("learned", "learned:8"),
        seeds=(3, 4),
        train_sizes=(None, 50),
        sources={"docstring": str(tmp_path)},
        settings={"epochs": 2, "hidden": 8},
        task_settings={"docstring": {"hidden": 16, "memory_gb": 1.5, "time_limit_seconds": 9.0}},
        cores=2,
    )
    jobs = plan_jobs(plan)
    # digits sees pixels only: 2 arms x 2 seeds x 2 sizes; docstring also 2 kinds of features
    assert len(jobs) == 2 * 2 * 2 + 2 * 2 * 2 * 2
    assert len({job.id for job in jobs}) == len(jobs)
    assert [job.id for job in plan_jobs(plan)] == [job.id for job in jobs]
    assert {job.work.features for job in jobs if job.work.task == "digits"} == {"pixels"}
    assert {job.work.hidden for job in jobs if job.work.task == "docstring"} == {16}
    assert all(job.work.epochs == 2 and job.work.threads == job.cores == 2 for job in jobs)
    needs = {(job.work.task, job.cores, job.memory_gb, job.time_limit_seconds) for job in jobs}
    assert needs == {("digits", 2, None, None), ("docstring", 2, 1.5, 9.0)}
    assert jobs[0].id.startswith("digits-none-pixels-nall-s3-")
    assert sum(job.id.startswith("docstring-window3-learned8-n50-s4-") for job in jobs) == 1
    assert [job.work.seed for job in jobs] == [3] * 12 + [4] * 12, "an early look compares all arms"
    one = EvaluationPlan(tasks=("digits",), arms={"a/b é" * 30: graphs})
    assert {job.work.graphs for job in plan_jobs(one)} == {graphs}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{20,91}", job.id) for job in plan_jobs(one))  # a folder's name


def test_settings_of_texts_are_warned_of_where_all_tasks_have_images(capsys):
    """`--reader bag` was ignored in silence."""
    image = {"tasks": ("digits", "mnist"), "arms": {"none": "none"}, "seeds": (0,), "sources": {"mnist": "m"}}
    plan = EvaluationPlan(**image, features=("v.txt",), settings={"reader": "bag", "epochs": 2})
    plan_jobs(plan)
    said = capsys.readouterr().err.splitlines()
    assert ["reader 'bag' is for texts" in said[0], "features ('v.txt',) is for" in said[1]] == [True, True]
    assert len(said) == 2 and all("units of digits, mnist are pixels" in line for line in said)
    plan_jobs(dataclasses.replace(plan, tasks=("mnist", "sst2"), features=("learned",)))
    plan_jobs(EvaluationPlan(**image, features=("pixels",), settings={"reader": "gru"}))
    assert not capsys.readouterr().err
    plan_jobs(EvaluationPlan(**image, settings={"state_cache": "states"}))
    assert "state_cache 'states' is for texts" in capsys.readouterr().err
    plan_jobs(
        dataclasses.replace(
            plan, tasks=("mnist", "sst2"), features=("learned",), task_settings={"mnist": {"reader": "lstm"}}
        )
    )
    assert "units of mnist are pixels" in capsys.readouterr().err


def test_jobs_with_gpus_compute_there(tmp_path):
    """And are other jobs than those on the processor, whose names are those of before there was a choice."""
    tasks = {
        "tasks": ("digits", "docstring"),
        "arms": {"none": "none"},
        "sources": {"docstring": str(tmp_path)},
    }
    plain = plan_jobs(EvaluationPlan(**tasks))
    assert {(job.gpus, job.work.device) for job in plain} == {(0, "cpu")}
    some = plan_jobs(EvaluationPlan(**tasks, gpus=0.5, task_settings={"docstring": {"gpus": 0}}))
    assert {(job.work.task, job.gpus, job.work.device) for job in some} == {
        ("digits", 0.5, "cuda"),
        ("docstring", 0, "cpu"),
    }
    known = {job.id for job in plain}
    assert {job.id in known for job in some if job.work.task == "docstring"} == {True}
    assert {job.id in known for job in some if job.work.task == "digits"} == {False}
    identity = to_dict(plain[0].work)
    for name in ("device", "state_cache", "task_file"):
        del identity[name]
    assert plain[0].id.endswith(fingerprint(identity)[:10])
    for wrong in (2, -1, float("nan")):
        with pytest.raises(ConfigError, match=r"gpus must be in \[0, 1\]"):
            plan_jobs(EvaluationPlan(**tasks, gpus=wrong))


def test_keep_is_warned_of_where_no_job_computes_graphs(tmp_path, capsys):
    """All graphs are in stores, or there are none; of a plan, or of one of its tasks."""
    model = str(save_model(tmp_path / "model", Glomo(GlomoConfig(vocab_size=4, width=8, heads=2))))
    in_store = store(tmp_path / "graphs" / "digits")
    store(tmp_path / "graphs" / "docstring", task="docstring")

    def said(tasks=("digits",), **fields):
        plan_jobs(EvaluationPlan(tasks, seeds=(0, 1), **fields))
        return capsys.readouterr().err

    stored, four = {"none": "none", "pretrained": in_store}, {"keep": 4}
    for arms in (stored, {"none": "none", "uniform": "uniform"}):
        text = said(arms=arms, settings=four)
        assert text.count("WARNING") == 1 and "keep 4 is for graphs that the jobs compute" in text
    both = {"pretrained": str(tmp_path / "graphs" / "{task}")}
    assert said(("digits", "docstring"), arms=both, task_settings={"docstring": four}).count("WARNING") == 1
    assert not said(arms=stored) and not said(arms={**stored, "live": model}, settings=four)


def test_an_id_follows_the_content_of_the_graphs_not_their_path(tmp_path):
    def ids(folder, **arms):
        plan = EvaluationPlan(tasks=("digits",), arms={**arms, "pretrained": folder}, seeds=(0,))
        return [job.id for job in plan_jobs(plan)]

    first = store(tmp_path / "a")
    moved, other = store(tmp_path / "b"), store(tmp_path / "c", model="m2")
    assert ids(first) == ids(moved)
    assert ids(first) != ids(other)
    # the arm without graphs takes only its size from the store
    assert ids(first, none="none")[0] == ids(other, none="none")[0]
    assert ids(first, none="none")[0] != ids(store(tmp_path / "d", heads=4, layers=1), none="none")[0]


def test_none_and_uniform_get_the_size_of_the_first_store(tmp_path):
    graphs = store(tmp_path / "graphs")
    arms = {"none": "none", "pretrained": graphs, "other": store(tmp_path / "other")}
    plan = EvaluationPlan(tasks=("digits",), arms=arms, seeds=(0,))
    assert [job.work.graphs for job in plan_jobs(plan)] == [graphs, graphs, arms["other"]]


def test_task_and_seed_in_the_path(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "digits" / f"random-{seed}"
        store(folder, model=f"r{seed}", predictor="random", random_seed=seed)
    plan = EvaluationPlan(
        tasks=("digits",), arms={"random": str(tmp_path / "{task}" / "random-{seed}")}, seeds=(0, 1)
    )
    assert [job.work.graphs[-8:] for job in plan_jobs(plan)] == ["random-0", "random-1"]


def test_graphs_of_another_task_are_refused(tmp_path):
    graphs = store(tmp_path / "graphs", task="docstring")
    with pytest.raises(ConfigError, match=r"graphs of task 'docstring'.*for task 'digits'.*\{task\}"):
        plan_jobs(EvaluationPlan(tasks=("digits",), arms={"pretrained": graphs}))
    # not the arm that borrows their sizes
    with pytest.raises(ConfigError, match="arm 'pretrained' has graphs of"):
        plan_jobs(EvaluationPlan(tasks=("digits",), arms={"none": "none", "pretrained": graphs}))


def test_a_model_in_the_place_of_a_store(tmp_path):
    """Of a finished run; it serves every task, and its content is in the id."""
    torch.manual_seed(0)
    for name, layers in (("run", 2), ("other", 3)):
        model = Glomo(GlomoConfig(vocab_size=4, width=8, heads=2, layers=layers))
        save_model(tmp_path / name / "model", model)

    def ids(name):
        arms = {"none": "none", "pretrained": str(tmp_path / name)}
        plan = EvaluationPlan(tasks=("digits", "docstring"), arms=arms, seeds=(0,))
        return [job.id for job in plan_jobs(plan)]

    assert len(set(ids("run"))) == 4
    assert not set(ids("run")) & set(ids("other"))
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert ids("moved") == ids("run")


def test_ids_follow_the_content_of_an_encoder_and_not_its_path_or_cache(tmp_path):
    folder = tmp_path / "encoder"
    write_bert(folder)
    shutil.copytree(folder, tmp_path / "copy")

    def ids(features, **settings):
        plan = EvaluationPlan(
            tasks=("docstring",), arms={"none": "none"}, features=features, seeds=(0,), settings=settings
        )
        return [job.id.rpartition("-")[2] for job in plan_jobs(plan)]

    specs = (f"hf:{folder}", f"hf:{folder}@0", f"trnn:hf:{folder}", f"hf:{folder}@-1,first")
    assert len(set(ids(specs))) == 4
    assert ids(specs) == ids(tuple(s.replace("encoder", "copy") for s in specs), state_cache=str(tmp_path))
    (folder / "model.safetensors").write_bytes(b"others")
    assert not set(ids(specs)) & set(ids((f"hf:{tmp_path / 'copy'}",)))


def test_jobs_mean_the_same_files_in_every_folder(tmp_path, monkeypatch):
    """An archive at the end of a chain too: workers may run in another folder."""
    (tmp_path / "v.txt").write_text("film 0.5 0.25\n")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "v.txt", "v.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    features, cache = ("v.txt", "trnn:zip://v.txt::all.zip"), {"state_cache": "~/states"}
    sources = {"sst2": "sst2", "imdb": "zip://imdb::all.zip"}
    arms = {"none": "none"}
    plan = EvaluationPlan(("sst2", "imdb"), arms, features, (0,), sources=sources, settings=cache)
    work = [job.work for job in plan_jobs(plan)]
    assert {w.task_source for w in work} == {f"{tmp_path}/sst2", f"zip://imdb::{tmp_path}/all.zip"}
    assert {w.features for w in work} == {f"{tmp_path}/v.txt", f"trnn:zip://v.txt::{tmp_path}/all.zip"}
    assert {w.state_cache for w in work} == {f"{tmp_path}/states"}


def test_missing_store_is_named(tmp_path):
    plan = EvaluationPlan(tasks=("digits",), arms={"pretrained": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match=r"nowhere: no index.json"):
        plan_jobs(plan)
    (tmp_path / "nowhere" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"nowhere is not finished: .* Run `glomo pretrain` again"):
        plan_jobs(plan)


def test_a_part_of_a_model_is_named(tmp_path):
    model = save_model(tmp_path / "model", Glomo(GlomoConfig(vocab_size=4, width=8, heads=2)))
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing\. Copy the whole folder"):
        plan_jobs(EvaluationPlan(tasks=("digits",), arms={"pretrained": str(model)}))


def test_settings_of_the_wrong_kind_are_named(tmp_path):
    plan, two = EvaluationPlan(tasks=("digits",), arms={"none": "none"}), {"digits": {"epochs": "two"}}
    for changes, wrong in (
        ({"settings": {"epochs": "three"}}, "epochs must be int"),
        # so YAML reads 1e-3
        ({"settings": {"lr": "1e-3"}}, r"lr must be float, got '1e-3'. Write 0.001, .* as in 1.0e-3"),
        ({"task_settings": two}, "plan: task 'digits': epochs must be int, got 'two'"),
        ({"cores": 0}, "cores must be at least 1, got 0"),
        # the threads' own library would end the program without a word of ours
        ({"cores": 10**9}, "cores must be at most 4,096, got 1000000000"),
        ({"settings": {"epochs": 0}}, "epochs must be at least 1"),
        ({"settings": {"lr": float("inf")}}, "lr must be positive and finite, got inf"),
        ({"settings": {"max_units": 9}}, "task 'digits' has images, which cannot be cut"),
    ):
        with pytest.raises(ConfigError, match=wrong):
            plan_jobs(dataclasses.replace(plan, **changes))


def test_a_task_that_is_called_settings_has_its_own(monkeypatch):
    monkeypatch.setitem(TASKS, "settings", dataclasses.replace(get_task("digits"), name="settings"))
    own = {"settings": {"memory_gb": 1.5}}
    plan = EvaluationPlan(("settings",), {"none": "none"}, seeds=(0,), task_settings=own)
    assert [job.memory_gb for job in plan_jobs(plan)] == [1.5]


def test_stores_under_the_name_of_the_other_are_refused(tmp_path):
    """Before any job; an arm of any other name passes."""
    trained = store(tmp_path / "trained")
    random = store(tmp_path / "random-0", predictor="random", random_seed=0)
    model = str(save_model(tmp_path / "model", Glomo(GlomoConfig(vocab_size=4, width=8, heads=2))))

    def plan(**arms):
        return plan_jobs(EvaluationPlan(tasks=("digits",), arms={"none": "none", **arms}, seeds=(0,)))

    for graphs in (trained, model):
        with pytest.raises(
            ConfigError, match=rf"arm 'random' has the graphs of a trained predictor \({graphs}\)"
        ):
            plan(random=graphs, pretrained=trained)
    with pytest.raises(ConfigError, match=r"'pretrained' has the graphs of a random predictor .*random-0"):
        plan(pretrained=str(tmp_path / "random-{seed}"))
    assert len(plan(random=random, pretrained=trained)) == 3
    assert len(plan(mine=random, yours=trained, live=model)) == 4


def test_an_encoder_that_no_job_could_use(tmp_path):
    """A layer that it does not have, or no tokenizer, was found by each job for itself."""
    bert = write_bert(tmp_path / "bert")

    def plan(layer=-1):
        features = (f"hf:{bert}@{layer}",)
        return plan_jobs(EvaluationPlan(tasks=("docstring",), arms={"none": "none"}, features=features))

    assert len(plan(2)) == len(plan(-3)) == 3
    with pytest.raises(
        ConfigError, match=r"plan: features 'hf:.*bert@7,mean': .* the layers 0 to 2 .* for 7"
    ):
        plan(7)
    for file in (tmp_path / "bert").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"plan: features 'hf:.*bert@-1,mean': .* no files of a tokenizer"):
        plan()
