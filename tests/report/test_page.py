"""What stands on the page: hostile and long names are only text, headings and references hold together."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from page_tags import HOSTILE, Tags, self_contained
from result_folders import job, result, write
from run_folders import log_row, run_folder
from transfer_samples import store_meta

from glomo_dist.graphs.export import export_graphs
from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.report import build
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.transfer.registry import get_task


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
        assert "1 step, ranks: 2" in Tags(page.read_text()).text
        with pytest.raises(GlomoError, match=r"nothere"):
            build(folder, page, stores=kind(tmp_path / "nothere"))
        with pytest.raises(GlomoError, match=r"task .*nothere\.py: No such file"):
            build(folder, page, tasks=kind(tmp_path / "nothere.py"))
    with pytest.raises(DataError, match="no results were named"):
        build([], page)


def test_the_data_of_a_task_are_named(tmp_path):
    build([write(tmp_path / "in", [result(job("none", 0), 0.5)])], tmp_path / "report.html")
    assert f"{get_task('sst2').data_source}: " in Tags((tmp_path / "report.html").read_text()).text


def test_classes_are_counted_where_there_are_several(tmp_path):
    """A task that predicts a score has one, whose number says nothing."""
    for name, classes in (("one", ("score",)), ("two", ("bad", "good"))):
        page = tmp_path / f"{name}.html"
        build(write(tmp_path / name, [result(job("none", 0), 0.5, classes=classes)]), page)
        assert (" classes" in page.read_text(encoding="utf-8")) == (name == "two")


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
