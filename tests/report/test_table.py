"""From result folders to rows: pairing, grouping, what is missing, and errors that name the file."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from page_tags import Tags
from result_folders import NONE, PRETRAINED, id_of, job, result, scores, write

from glomo_dist.report import as_text, build, read_results
from glomo_dist.report.groups import features_name
from glomo_dist.report.table import p_text, tables
from glomo_dist.runtime.errors import DataError


def drop(one, setting):
    return dataclasses.replace(one, job={key: v for key, v in one.job.items() if key != setting})


def test_rows_by_hand(tmp_path):
    folder = write(tmp_path / "out", scores("none", NONE) + scores("pretrained", PRETRAINED))
    (table,) = tables(read_results([folder]))
    none, pretrained = table.rows
    assert (none.arm, pretrained.arm, table.main) == ("none", "pretrained", "pretrained")
    assert none.score.mean == pytest.approx(0.72) and none.score.sd == pytest.approx(0.02)
    assert none.to_none is None and pretrained.main_minus is None
    assert pretrained.to_none.difference.mean == pytest.approx(0.02)
    assert none.main_minus.difference.mean == pytest.approx(0.02)
    assert pretrained.to_none.p == pytest.approx(0.07418, abs=1e-5)
    text = as_text(read_results([folder]))
    assert "72.00 ± 2.00" in text and "+2.00 [−0.48, +4.48], p = 0.074" in text


def test_the_main_arm_is_the_last_one_with_graphs(tmp_path):
    rows = [row for arm in ("none", "first", "second", "uniform") for row in scores(arm, NONE)]
    assert tables(read_results([write(tmp_path / "out", rows)]))[0].main == "second"


def test_all_metrics_are_shown(tmp_path):
    """Exact match beside F1, the parts of a test set that a task tells apart: not in result.json alone."""
    rows = [
        result(job(arm, seed), 0.5, metrics={"accuracy": 0.5, "accuracy.high": 0.25 + 0.02 * seed})
        for arm in ("none", "pretrained")
        for seed in range(2)
    ]
    folder = write(tmp_path / "out", [*rows, result(job("uniform", 0), 0.5)])
    text = as_text(build([folder], tmp_path / "report.html"))
    (line,) = (row for row in text.splitlines() if row.startswith("accuracy.high"))
    assert re.split("  +", line)[1:] == ["26.00 ± 1.41", "26.00 ± 1.41", "–"]
    page = Tags((tmp_path / "report.html").read_text()).text
    assert "accuracy.high" in page and page.count("26.00 ± 1.41") == 2
    assert "other test metrics" not in as_text(read_results([write(tmp_path / "b", scores("none", NONE))]))


def test_missing_seeds_and_failures_are_said(tmp_path):
    folder = write(
        tmp_path / "out",
        scores("none", NONE) + scores("pretrained", {0: 0.71, 1: 0.74}) + scores("uniform", {0: 0.6}),
        failed={job("pretrained", 2): "MemoryError: 2 GB"},
        missing=[job("uniform", 1)],
    )
    results = read_results([folder])
    text = as_text(results)
    line = {row.split("  ")[0]: row for row in text.splitlines()}
    assert "2 of 3" in line["pretrained graph"] and "(2 common seeds)" in line["pretrained graph"]
    assert "1 of 2" in line["uniform graph"] and "(1 seed: no interval)" in line["uniform graph"]
    assert "60.00  " in line["uniform graph"] and "±" not in line["uniform graph"].split("1 of 2")[0]
    assert "1 job failed: " in text and "MemoryError: 2 GB" in text
    assert "1 planned job has no result yet" in text


def test_a_folder_named_twice_counts_once(tmp_path, monkeypatch):
    failed = {job("pretrained", 2): "MemoryError: 2 GB"}
    folder = write(tmp_path / "out", scores("none", NONE), failed, missing=[job("uniform", 1)])
    monkeypatch.chdir(tmp_path)
    results = read_results([folder, "out", "./out/../out"])
    assert (len(results.failed), len(results.missing), len(results.commands)) == (1, 1, 1)


def test_columns_of_wide_letters_are_in_line(tmp_path):
    rows = scores("none", NONE) + scores("\u8bed\u8a00\u8bed\u8a00\u8bed\u8a00", PRETRAINED)
    lines = as_text(read_results([write(tmp_path / "out", rows)])).splitlines()
    (none,) = (line for line in lines if line.startswith("no graph"))
    (wide,) = (line for line in lines if line.startswith("\u8bed"))
    assert none.index("72.00") == wide.index("74.00") + 6


def test_sizes_features_and_settings_are_not_mixed(tmp_path):
    rows = scores("none", NONE) + scores("none", NONE, train_size=5) + scores("none", {0: 0.1}, lr=0.5)
    rows += scores("none", NONE, features="/data/wiki.npz")
    groups = read_results([write(tmp_path / "out", rows)]).groups
    titles = sorted(group.title for group in groups)
    assert titles == [
        "sst2, learned vectors, 5 training examples",
        "sst2, learned vectors, lr 0.001",
        "sst2, learned vectors, lr 0.5",
        "sst2, wiki",
    ]
    assert {group.title: group.planned["none"] for group in groups}["sst2, learned vectors, lr 0.5"] == 1


def test_results_from_before_a_setting_was_there_count_as_its_default(tmp_path):
    before = [drop(one, "mixture_scale") for one in scores("none", NONE)]
    folders = [
        write(tmp_path / "before", before),
        write(tmp_path / "after", scores("pretrained", PRETRAINED)),
    ]
    (group,) = read_results(folders).groups
    assert list(group.arms) == ["none", "pretrained"]
    other = write(tmp_path / "other", scores("pretrained", PRETRAINED, mixture_scale=0.0))
    assert [g.settings for g in read_results([folders[0], other]).groups] == [
        "mixture_scale 1.0",
        "mixture_scale 0.0",
    ]


def test_what_a_gpu_computed_is_not_compared_with_the_processors(tmp_path):
    """Results of before there was a choice are of the processor."""
    folders = [
        write(tmp_path / "before", [drop(one, "device") for one in scores("none", NONE)]),
        write(tmp_path / "cpu", scores("pretrained", PRETRAINED)),
        write(tmp_path / "gpu", scores("pretrained", PRETRAINED, device="cuda")),
    ]
    found = [(group.settings, list(group.arms), group.planned) for group in read_results(folders).groups]
    assert found == [
        ("device cpu", ["none", "pretrained"], {"none": 3, "pretrained": 3}),
        ("device cuda", ["pretrained"], {"pretrained": 3}),
    ]


def test_the_same_seed_of_an_arm_twice_is_refused(tmp_path):
    first = write(tmp_path / "a", [result(job("pretrained", 0), 0.5)])
    other = result(job("pretrained", 0, graphs="/other/store"), 0.9)
    second = write(tmp_path / "b", [other])
    moved = second / "results" / "another-id"
    (second / "results" / id_of(job("pretrained", 0))).rename(moved)
    plan = json.loads((second / "plan.json").read_text())
    plan["jobs"][0]["id"] = "another-id"
    (second / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(DataError, match=r"a/results/.*b/results/another-id/result.json.*different names"):
        read_results([first, second])


def test_the_same_job_in_two_folders(tmp_path):
    """A copy counts once, whatever the order; another result of the job is refused, whatever the order."""
    first = write(tmp_path / "a", scores("none", NONE))
    copy = write(tmp_path / "b", scores("none", NONE))
    assert tables(read_results([first, copy]))[0].rows[0].score.n == 3
    other = write(tmp_path / "c", scores("none", {0: 0.1}))
    graphs = dataclasses.replace(
        result(job("none", 0), NONE[0]), fingerprints={"data": "d" * 16, "graphs": "g"}
    )
    changed = write(tmp_path / "d", [graphs])
    for folder, what in ((other, "test 0.[17] and 0.[17]"), (changed, "graphs (None|g) and (None|g)")):
        for order in ([first, folder], [folder, first]):
            with pytest.raises(DataError, match=what) as e:
                read_results(order)
            assert all(f"{one}/results/" in str(e.value) for one in order)


def test_equal_differences_are_said_to_have_no_spread(tmp_path):
    rows = scores("none", NONE) + scores("pretrained", {0: 0.71, 1: 0.73})
    text = as_text(read_results([write(tmp_path / "out", rows)]))
    assert "+1.00 [+1.00, +1.00] (no spread) (2 common seeds)" in text


def test_no_difference_has_no_minus(tmp_path):
    """A mean of −0.001 points is written as that of +0.001 is."""
    rows = scores("none", {0: 0.70, 1: 0.72, 2: 0.74}) + scores("pretrained", {0: 0.70, 1: 0.71998, 2: 0.74})
    text = as_text(read_results([write(tmp_path / "out", rows)]))
    assert "+0.00 [+0.00, +0.00], p = 0.42" in text


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0001, "p < 0.001"),
        (0.0494, "p = 0.049"),
        (0.0499, "p = 0.0499"),
        (0.049997, "p = 0.049997"),
        (0.05, "p = 0.050"),
        (0.074, "p = 0.074"),
        (0.234, "p = 0.23"),
    ],
)
def test_what_is_below_the_usual_limit_is_written_so(p, text):
    assert p_text(p) == text
    assert p_text(math.nextafter(0.05, 0)) != p_text(0.05)


def test_names_change_nothing_around_them(tmp_path):
    """No new line, no command to the terminal, no turned direction, and no letter that cannot be written."""
    name = "a\nb\x1b[31m\u202ec\udcff"
    rows = scores("none", NONE) + scores(name, PRETRAINED, features="/data/w\x1b.npz")
    rows += scores(name, PRETRAINED)
    failed = {job("none", 7): "ValueError: a\nb\x1b"}
    results = read_results([write(tmp_path / "out", rows, failed)])
    text = as_text(results)
    assert "a b\ufffd[31m\ufffdc\ufffd" in text and "ValueError: a b\ufffd" in text
    assert "sst2, w\ufffd" in text
    assert not set(text) & set("\x1b\u202e\udcff")


def test_results_of_no_plan_are_left_out(tmp_path):
    folder = write(tmp_path / "out", scores("none", NONE))
    result(job("none", 9), 0.0).write(folder / "results" / "old" / "result.json")
    results = read_results([folder])
    assert results.strays == ["old"] and tables(results)[0].rows[0].score.n == 3
    assert "1 result belongs to no job of the newest plan" in as_text(results)


def test_folders_without_a_result_of_their_plan_are_no_report(tmp_path):
    """All jobs failed, or all results are of another plan: no empty page."""
    error = {job("none", 0, max_units=5): "GraphStoreError: of other\nunits"}
    folder = write(tmp_path / "out", [], error)
    with pytest.raises(
        DataError,
        match=r"out: no job .* 1 job failed, .*: GraphStoreError: of other units \(traceback: .*out/results/.*Wait",
    ):
        read_results([folder])
    result(job("none", 9), 0.0).write(folder / "results" / "old" / "result.json")
    page = tmp_path / "report.html"
    with pytest.raises(
        DataError, match=r"GraphStoreError.* 1 result belongs to no job of the newest plan: run"
    ):
        build([folder], page)
    assert not page.exists()
    assert len(read_results([folder, write(tmp_path / "more", scores("none", NONE))]).failed) == 1


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ((("m1", "m1"), ("m1", "m1")), False),
        ((("m1", "m1"), ("m2", "m2")), True),
        ((("r0", "r1"), ("r2", "r3")), False),  # a random predictor for each seed
        ((("m0", "m1"), ("m2", "m3")), True),  # one path, of which another was made each time
        ((("r0", "r0"), ("r0", "r1")), True),
    ],
)
def test_a_mean_over_several_models_is_said(tmp_path, models, said):
    folders = []
    for number, of_folder in enumerate(models):
        paths = [f"/gone/{model}" if model.startswith("r") else "/gone/store" for model in of_folder]
        rows = [result(job("pretrained", 2 * number + i, graphs=paths[i]), 0.5) for i in range(2)]
        rows = [
            dataclasses.replace(r, fingerprints={**r.fingerprints, "model": model})
            for r, model in zip(rows, of_folder, strict=True)
        ]
        folders.append(write(tmp_path / f"{number}", rows))
    assert ("graphs of different models" in as_text(read_results(folders))) == said


def test_word_vectors_in_an_archive_have_their_own_name():
    assert features_name("trnn:zip://glove/50d.txt::/data/all.zip") == "trnn:50d"
    assert features_name("zip://100d.txt::https://host/all.zip?token=s") == "100d"
    assert features_name("/data/glove.6B.100d.txt.gz") == "glove.6B.100d"
