"""The page: complete, self-contained, safe against hostile names, drawn from real stores and runs."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from page_tags import Tags, self_contained
from result_folders import NONE, id_of, job, result, scores, write
from run_folders import log_row, run_folder
from transfer_samples import planted_store, store_meta, write_sst2

from glomo_dist.cli.arguments import save_command
from glomo_dist.cli.export import Export
from glomo_dist.evaluate import EvaluationPlan, InProcess, evaluate, plan_jobs
from glomo_dist.graphs import index
from glomo_dist.graphs.export import export_graphs
from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.report import build, read_results
from glomo_dist.report.provenance import facts
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.transfer.datasets.dataset import section
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.registry import TASKS, get_task
from glomo_dist.transfer.result import Result


def test_a_real_evaluation_with_graphs_over_pixels_and_words(tmp_path):
    """Digits and docstrings from the data to the page, in process, with untrained graphs."""
    torch.manual_seed(0)
    rows = [
        {"text": f"{verb} the <b>bold</b> $value$ of all {noun}s in the list", "label": noun, "split": split}
        for split in ("train", "dev", "test")
        for noun in ("file", "socket")
        for verb in ("return", "close", "open")
    ]
    (tmp_path / "docstrings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"digits": None, "docstring": str(tmp_path / "docstrings.jsonl")}
    for task_name, source in sources.items():
        task = get_task(task_name)
        data = task.load(source, 12)
        image = (8, 8) if task.unit == "pixels" else None
        predictor = Glomo(
            GlomoConfig(vocab_size=16, width=8, heads=2, layers=2, image=image, sparsity="square")
        )
        ids = {
            section(split, name): [
                (np.asarray(units) // 16).reshape(-1).astype(np.int32)
                if image
                else np.array([len(word) % 16 for word in units], np.int32)
                for units in column.values
            ]
            for split, examples in data.splits.items()
            for name, column in examples.columns.items()
        }
        meta = store_meta(task_name, data.fingerprint)
        export_graphs(predictor, ids, tmp_path / "graphs" / task_name, meta=meta)
    plan = EvaluationPlan(
        tasks=("digits", "docstring"),
        arms={"none": "none", "pretrained": str(tmp_path / "graphs" / "{task}")},
        seeds=(0, 1),
        sources={"docstring": sources["docstring"]},
        settings={"epochs": 1, "max_examples": 12, "hidden": 4},
    )
    summary = evaluate(plan_jobs(plan), run, tmp_path / "out", InProcess())
    assert summary.finished == 8, summary.failed

    pretraining = run_folder(tmp_path / "run", [log_row(step, valid_loss=4.0) for step in range(1, 5)])
    build([tmp_path / "out"], tmp_path / "report.html", [pretraining])
    source = (tmp_path / "report.html").read_text()
    page = Tags(source)
    self_contained(page, source)
    # per task: dots, curves, mixture weights; the run: loss, empty rows; drawings: words and heads, pixels
    assert [tag for tag, _ in page.tags].count("svg") == 2 * 3 + 2 + 3
    assert "Not drawn" not in page.text
    assert (
        "pretrained graph: docstring, test example" in page.text and "pretrained graph: digits" in page.text
    )
    for word in ("<", "$", "bold", "value"):
        assert word in page.text, f"{word!r} of the drawn example"
    assert get_task("digits").load(None, 12).fingerprint in page.text and "f00d" in page.text
    assert "4 steps, ranks: 2, 2.0 s" in page.text and "glomo pretrain shards --out run" in page.text
    assert 'colspan="3"><code>glomo pretrain shards --out run' in source, "a command over the whole width"


@pytest.mark.filterwarnings("error")
def test_names_of_arms_are_only_text_and_sizes_may_differ(tmp_path):
    """Names that matplotlib takes for mathematics, or leaves out of a legend; seeds with graphs of other models."""
    rows = [result(job(arm, seed), 0.5) for arm in ("none", "p$_{$", "_mine") for seed in range(2)]
    three = tuple(replace(mixed, weights=(0.5, 0.25, 0.25)) for mixed in rows[-1].mixtures)
    rows[-1] = replace(rows[-1], components=("G0.0", "G0.1", "G0.2"), mixtures=three)
    build([write(tmp_path / "in", rows)], tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text()
    # In the table's row, below the dots, in the legend of the curves; the weights of `_mine` have no common size.
    assert source.count("Mixture weights per component: p$_{$") == 1
    assert "Mixture weights per component: _mine" not in source
    assert len(re.findall(r"<!-- _mine -->|>_mine<", source)) >= 3
    assert "2 classes" in source


def test_graphs_that_jobs_computed_and_kinds_of_features(tmp_path):
    """No store to draw; vectors and a network over the same vectors are different kinds of features."""
    torch.manual_seed(0)
    model = Glomo(GlomoConfig(vocab_size=4, width=8, heads=1, layers=1))
    folder = save_model(tmp_path / "run" / "model", model).parent
    results = [
        result(replace(job(arm, 0, features=features), graphs=str(folder)), 0.5)
        for arm in ("none", "pretrained")
        for features in ("/a/vectors.npz", "trnn:/a/vectors.npz", "hf:/a/encoder@-2,mean")
    ]
    for one in results:
        one.fingerprints["model"] = "feedbeef"
    out = write(tmp_path / "out", results)
    build([out], tmp_path / "report.html")
    page = Tags((tmp_path / "report.html").read_text()).text
    for title in ("sst2, vectors", "sst2, trnn:vectors", "sst2, hf:encoder@-2,mean"):
        assert title in page
    assert "computed in the jobs by model feedbeef" in page and "Not drawn" not in page


def test_data_that_changed_is_said_and_not_drawn(tmp_path):
    predictor = Glomo(GlomoConfig(vocab_size=16, width=8, heads=1, layers=1))
    meta = store_meta("digits", "another")
    ids = {name: [np.zeros(64, np.int32)] for name in ("train", "dev", "test")}
    store = export_graphs(predictor, ids, tmp_path / "store", meta=meta)
    build([write(tmp_path / "in", [result(job("none", 0), 0.5)])], tmp_path / "report.html", stores=[store])
    assert "Not drawn" in (text := Tags((tmp_path / "report.html").read_text()).text) and "another" in text


def test_a_store_that_was_asked_for_has_its_data_from_a_result_or_its_export(tmp_path, monkeypatch):
    """Each set is read once, however many stores are of it."""
    source = write_sst2(tmp_path / "data", sizes=(8, 4, 4))
    stores = [tmp_path / name for name in ("a", "b")]
    for store in stores:
        planted_store(store, source, max_examples=4)
    fingerprint = get_task("sst2").load(source, 4).fingerprint
    work = job("none", 0, task_source=source, max_examples=4)
    of_data = result(work, 0.5, fingerprints={"data": fingerprint})
    read: list[str] = []
    task = get_task("sst2")
    counting = replace(task, load=lambda *of: [read.append(of[0]), task.load(*of)][1])
    monkeypatch.setitem(TASKS, "sst2", counting)

    def page(of: Result) -> str:
        build([write(tmp_path / "in", [of])], tmp_path / "report.html", stores=stores)
        return Tags((tmp_path / "report.html").read_text()).text

    text = page(of_data)
    assert "a: sst2, test example" in text and "b: sst2, test example" in text and read == [source]
    text = page(result(job("none", 0), 0.5))  # of other data
    assert text.count("Nothing says where the data of this store lie") == 2
    (stores[0] / "command.json").write_text('{"arguments": {"source": 5, "max_examples": 4}}')  # damaged
    save_command(stores[1], "export", Export("m", "sst2", "b", source=source, max_examples=4))
    text = page(result(job("none", 0), 0.5))
    assert text.count("Nothing says") == 1 and "b: sst2, test example" in text


def test_machines_are_named_with_their_gpu(tmp_path):
    folder = write(tmp_path / "out", scores("none", NONE))
    for seed, gpu in enumerate(("NVIDIA H200", None)):
        machine = {"cpu": "EPYC", "gpu": gpu, "cores": 16, "python": "3.11", "torch": "2.13"}
        record = folder / "results" / id_of(job("none", seed)) / "job.json"
        record.write_text(json.dumps({"machine": machine}))
    named = [fact.name for fact in facts(read_results([folder]), [], {}) if fact.what == "machine"]
    plain = "EPYC, 16 cores, Python 3.11, torch 2.13"
    assert named == [f"NVIDIA H200 and {plain}", plain]


def test_a_store_is_opened_once(tmp_path, monkeypatch):
    """Although it is asked for, was used by a job, is drawn, and is a row of what produced the numbers."""
    predictor = Glomo(GlomoConfig(vocab_size=16, width=8, heads=1, layers=1))
    ids = {name: [np.zeros(64, np.int32)] for name in ("train", "dev", "test")}
    store = export_graphs(predictor, ids, tmp_path / "store", meta=store_meta("digits", "another"))
    opened, read_index = [], index.read_index
    monkeypatch.setattr(
        "glomo_dist.graphs.store.read_index", lambda at: [opened.append(at), read_index(at)][1]
    )
    results = write(tmp_path / "in", [result(replace(job("pretrained", 0), graphs=str(store)), 0.5)])
    build([results], tmp_path / "report.html", stores=[store])
    assert opened == [store]


def test_unusable_runs_and_outputs_are_named(tmp_path):
    results = write(tmp_path / "in", [result(job("none", 0), 0.5)])
    page = tmp_path / "report.html"
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        build([results], page, [tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"in is no run of `glomo pretrain`: config.json is missing"):
        build([results], page, [tmp_path / "in"])
    with pytest.raises(DataError, match=r"log.jsonl: no row with a step and a loss"):
        build([results], page, [run_folder(tmp_path / "young", [])])
    with pytest.raises(GlomoError, match=r"nothere.*index\.json"):
        build([results], page, stores=[tmp_path / "nothere"])
    damaged = run_folder(tmp_path / "damaged", [log_row(1), log_row(2)])
    text = (damaged / "log.jsonl").read_text()
    (damaged / "log.jsonl").write_text("}" + text)
    with pytest.raises(DataError, match=r"log.jsonl, line 1: not valid JSON"):
        build([results], page, [damaged])
    with pytest.raises(GlomoError, match=r"is a folder; the name of a file was expected"):
        build([results], tmp_path)
    assert not page.exists()
    (damaged / "log.jsonl").write_text(text + '{"step": 3, "lo')  # killed while writing: the rest counts
    build([results], page, [damaged])
    assert "2 steps" in page.read_text()


def test_what_a_killed_report_left_goes(tmp_path):
    results = write(tmp_path / "in", [result(job("none", 0), 0.5)])
    others = [".[a].html.mine.tmp", ".[b].html.01234567.tmp", ".a.html.01234567.tmp", "in"]
    for name in (".[a].html.01234567.tmp", *others[:3]):
        (tmp_path / name).touch()
    build([results], tmp_path / "[a].html")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "[a].html"])


def test_outputs_that_are_no_plain_files_stay_what_they_are(tmp_path):
    results = [write(tmp_path / "in", [result(job("none", 0), 0.5)])]
    pipe, link = tmp_path / "pipe", tmp_path / "link.html"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    build(results, pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    reader.join(10)
    assert read[0].startswith("<!DOCTYPE html>")
    link.symlink_to(tmp_path / "page.html")
    for _ in range(2):  # of nothing yet, and of an older page
        build(results, link)
        assert link.is_symlink() and (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(GlomoError, match=r"x\.html lies below .*page\.html, which is a file"):
        build(results, tmp_path / "page.html" / "x.html")
