"""Which results stand in one table."""

from __future__ import annotations

import dataclasses

import pytest
from result_folders import NONE, PRETRAINED, job, scores, write

from glomo_dist.report import read_results


def test_word_vectors_of_other_names_are_not_compared(tmp_path):
    names = ["glove.6B.100d.txt", "glove.6B.300d.txt", "glove.840B.300d.txt.gz", "sub/wiki.en.vec"]
    rows = [row for name in names for row in scores("none", NONE, features=f"/data/{name}")]
    titles = [group.title for group in read_results([write(tmp_path / "names", rows)]).groups]
    assert titles == ["sst2, glove.6B.100d", "sst2, glove.6B.300d", "sst2, glove.840B.300d", "sst2, wiki.en"]


@pytest.mark.parametrize(("of", "said"), [("features", "features"), ("task_file", "task file")])
def test_what_has_the_same_name_and_another_content_is_not_compared(tmp_path, of, said):
    def of_content(arm, values, content):
        rows = scores(arm, values, features="/data/wiki.npz")
        return [dataclasses.replace(r, fingerprints={**r.fingerprints, of: content}) for r in rows]

    folders = [
        write(tmp_path / "old", of_content("none", NONE, "aaaa")),
        write(tmp_path / "new", of_content("pretrained", PRETRAINED, "bbbb")),
    ]
    groups = read_results(folders).groups
    assert [list(group.arms) for group in groups] == [["none"], ["pretrained"]]
    assert [group.settings for group in groups] == [f"{said} content {c}" for c in ("aaaa", "bbbb")]


def test_an_older_result_is_of_the_one_file_that_others_know(tmp_path):
    """It stood in a table of its own, although an evaluation goes on from it."""
    new = [
        dataclasses.replace(r, fingerprints={**r.fingerprints, "task_file": "aaaa"})
        for r in scores("pretrained", PRETRAINED)
    ]
    (group,) = read_results([write(tmp_path / "all", [*scores("none", NONE), *new])]).groups
    assert list(group.arms) == ["none", "pretrained"] and not group.settings


def test_seeds_are_counted_where_the_data_is_the_same(tmp_path):
    def on(data, seeds):
        rows = scores("none", dict.fromkeys(seeds, 0.5))
        return [dataclasses.replace(r, fingerprints={**r.fingerprints, "data": data}) for r in rows]

    folders = [write(tmp_path / "a", on("x", (0, 1))), write(tmp_path / "b", on("y", (0, 1, 2, 3)))]
    assert [group.planned["none"] for group in read_results(folders).groups] == [2, 4]
    failed = {job("none", seed): "MemoryError" for seed in (4, 5)}
    (group,) = read_results([folders[0], write(tmp_path / "c", [], failed)]).groups
    assert group.planned["none"] == 4, "a folder without any result has no other data"
