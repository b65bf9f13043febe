"""The page: complete, self-contained, safe against hostile names, drawn from real stores and runs."""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from result_folders import job, result, write
from run_folders import log_row, run_folder
from transfer_samples import store_meta

from glomo_dist.evaluate import EvaluationPlan, InProcess, evaluate, plan_jobs
from glomo_dist.graphs.export import export_graphs
from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.report import build
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.transfer.dataset import section
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.task import get_task

HOSTILE = '<script>alert("x")</script> & $x_1$'


class Tags(HTMLParser):
    """Every start tag with its attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def self_contained(page: Tags, source: str) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object"), tag
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, name, attributes[name])
    assert "@import" not in source and not re.search(r"url\((?!#)", source)


def test_hostile_strings_are_only_text(tmp_path):
    arms = ["none", HOSTILE]
    work = {arm: [job(arm, seed, task_source=HOSTILE) for seed in range(2)] for arm in arms}
    rows = [result(one, 0.5 + 0.1 * one.seed, classes=(HOSTILE, "b")) for one in work["none"] + work[HOSTILE]]
    failed = {job("uniform", 0): f"ValueError: {HOSTILE}"}
    build([write(tmp_path / "in", rows, failed)], tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text()
    page = Tags(source)
    self_contained(page, source)
    assert page.text.count("<script>alert(") >= 3  # the table, the plots, the traceback: as words
    assert "1 failed" in page.text and 'f"{' not in source
    assert "store is" not in page.text and "no longer there" in page.text


def test_one_of_each_need_not_be_in_a_list(tmp_path):
    folder = write(tmp_path / "in", [result(job("none", 0), 0.5)])
    page = tmp_path / "report.html"
    pretraining = run_folder(tmp_path / "run", [log_row(1)])
    for kind in (str, Path):
        assert len(build(kind(folder), page, run_folders=kind(pretraining)).finished) == 1
        assert "1 steps, ranks: 2" in Tags(page.read_text()).text
        with pytest.raises(GlomoError, match=r"nothere"):
            build(folder, page, stores=kind(tmp_path / "nothere"))
        with pytest.raises(GlomoError, match=r"task .*nothere\.py: No such file"):
            build(folder, page, tasks=kind(tmp_path / "nothere.py"))
    with pytest.raises(DataError, match="no results were named"):
        build([], page)


def test_the_data_of_a_task_are_named(tmp_path):
    build([write(tmp_path / "in", [result(job("none", 0), 0.5)])], tmp_path / "report.html")
    assert f"{get_task('sst2').data_source}: " in Tags((tmp_path / "report.html").read_text()).text


def test_names_that_are_not_utf_8_are_shown(tmp_path):
    """Python has half a surrogate pair for each byte that it cannot read in a file's name."""
    bad = "caf\udce9"
    rows = [
        result(job(arm, seed, features=f"/data/{bad}.npz"), 0.5) for arm in ("none", bad) for seed in (0, 1)
    ]
    folder = write(tmp_path / "in", rows, {job("uniform", 0): f"FileNotFoundError: {bad}"})
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "command": f"glomo evaluate {bad}.yaml"}))
    pretraining = run_folder(tmp_path / bad, [log_row(1), log_row(2)])
    ids = {name: [np.zeros(64, np.int32)] for name in ("train", "dev", "test")}
    meta = store_meta("digits", "another")
    predictor = Glomo(GlomoConfig(vocab_size=16, width=8, heads=1, layers=1))
    store = export_graphs(predictor, ids, tmp_path / "stores" / bad, meta=meta)
    build([folder], tmp_path / "report.html", [pretraining], [store])
    page = Tags((tmp_path / "report.html").read_text(encoding="utf-8"))
    for text in (
        "sst2, caf\ufffd",
        "glomo evaluate caf\ufffd.yaml",
        "stores/caf\ufffd",
        "FileNotFoundError: caf\ufffd",
    ):
        assert text in page.text


def test_long_names_leave_room_for_the_numbers(tmp_path):
    """Short, and still different, in figures and headings; whole in the table's row and above and behind figures."""
    long = ["x" * 100 + letter + "x" * 100 for letter in "ab"]
    rows = [result(job(arm, seed), 0.5 + 0.1 * seed) for arm in ("none", *long) for seed in (0, 1)]
    build([write(tmp_path / "in", rows)], tmp_path / "report.html")
    page = Tags(source := (tmp_path / "report.html").read_text())
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", source)
    assert max(map(len, drawn)) < 40 and {"forward", "backward"} <= set(drawn)
    cut = "x" * 12 + "…" + "x" * 11
    assert drawn.count(f"{cut} (2)") == drawn.count(f"{cut} (3)") == 2  # dots and curves
    assert f'data-label="{cut} minus this"' in source
    assert f"<figcaption>{long[0]}</figcaption>" in source and page.text.count(long[0]) >= 4


def test_no_id_is_there_twice_and_all_references_are_kept(tmp_path):
    rows = [result(job(arm, seed), 0.5) for arm in ("none", 'id="a" url(#b)') for seed in (0, 1)]
    pretraining = [run_folder(tmp_path / name, [log_row(1), log_row(2)]) for name in ("a", "b")]
    build([write(tmp_path / "in", rows)], tmp_path / "report.html", pretraining)
    page = Tags(source := (tmp_path / "report.html").read_text())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 50
    referred = set(re.findall(r'(?:href="#|="url\(#)([^")]*)', source))
    assert len(referred) > 10 and referred <= set(ids)
    assert page.text.count('id="a" url(#b)') >= 4


def test_headings_leave_no_level_out_and_an_arm_may_be_named_as_the_colour_of_text(tmp_path):
    rows = [result(job(arm, seed), 0.5) for arm in ("none", "#010203") for seed in (0, 1)]
    build([write(tmp_path / "in", rows)], tmp_path / "report.html")
    page = Tags(source := (tmp_path / "report.html").read_text())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(next <= level + 1 for level, next in itertools.pairwise(levels))
    assert ">#010203</text>" in source and "currentColor</text>" not in source
    assert re.search(r"<text[^>]*currentColor", source) and not re.search(r"<text[^>]*#010203", source)


def test_a_p_value_is_not_broken_between_lines(tmp_path):
    rows = [
        result(job(arm, s), v)
        for arm, v2 in (("none", 0.5), ("uniform", 0.6))
        for s, v in enumerate((v2, 0.7))
    ]
    build([write(tmp_path / "in", rows)], tmp_path / "report.html")
    assert "p\u00a0=\u00a00.50" in (tmp_path / "report.html").read_text()


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
