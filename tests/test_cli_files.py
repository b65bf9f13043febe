"""Files that cannot be used: refused with what is wrong and where, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_samples import Capture, nothing_at, refused, run
from privileges import public_folder, without_privileges
from road_samples import Raw, Road


def test_missing_file(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "absent.txt", tmp_path / "shards"
    refused(["prepare", "text", file, "--out", out], capfd, file)
    refused(["prepare", "images", tmp_path / "absent.npz", "--out", out], capfd, "absent.npz")
    nothing_at(out)


def test_no_source_at_all(tmp_path: Path, capfd: Capture) -> None:
    refused(["prepare", "text", "--out", tmp_path / "shards"], capfd, "no source")


def test_empty_file(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "empty.txt", tmp_path / "shards"
    file.write_text("")
    refused(["prepare", "text", file, "--out", out], capfd, file)
    nothing_at(out)


def test_unreadable_file_and_folder(raw: Raw, capfd: Capture) -> None:
    with public_folder() as folder:
        file, out = folder / "secret.txt", folder / "shards"
        assert run(["prepare", "text", raw.text, "--out", folder / "warm"]) == 0  # so that all is imported
        closed = folder / "texts" / "closed"
        closed.mkdir(parents=True)
        (folder / "texts" / "open.txt").write_text("words")
        file.write_text("words")
        for path in (file, closed):
            path.chmod(0)
        with without_privileges():
            refused(["prepare", "text", file, "--out", out], capfd, file, "ermission")
            refused(["prepare", "text", folder / "texts", "--out", out], capfd, closed, "ermission")
        nothing_at(out)


def test_damaged_file(raw: Raw, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "shards"
    file = tmp_path / "cut.txt.gz"
    file.write_bytes(b"\x1f\x8b\x08\x00 this is not gzip")
    refused(["prepare", "text", file, "--out", out], capfd, file)
    archive = tmp_path / "cut.npz"
    archive.write_bytes(raw.digits.read_bytes()[:1000])
    refused(["prepare", "images", archive, "--out", out], capfd, archive)
    nothing_at(out)


def test_wrong_encoding(tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "shards"
    file = tmp_path / "latin.txt"
    file.write_bytes("one line\ncaf\u00e9 au lait\n".encode("latin-1"))
    refused(["prepare", "text", file, "--out", out], capfd, file, "UTF-8")
    rows = tmp_path / "latin.jsonl"
    rows.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    refused(["prepare", "text", rows, "--out", out], capfd, rows, "line 2", "UTF-8")
    nothing_at(out)


def test_row_without_the_key(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "shards"
    file.write_text('{"text": "fine"}\n{"body": "elsewhere"}\n')
    refused(["prepare", "text", file, "--out", out], capfd, file, "line 2", "'text'")
    nothing_at(out)


def test_zero_usable_documents(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "blank.jsonl", tmp_path / "shards"
    file.write_text('{"text": " "}\n{"text": ""}\n')
    refused(["prepare", "text", file, "--out", out], capfd, file)
    nothing_at(out)


def test_nan_in_images(tmp_path: Path, capfd: Capture) -> None:
    file, out = tmp_path / "images.npz", tmp_path / "pixels"
    images = np.zeros((3, 4, 4), np.float32)
    images[1, 2, 2] = np.nan
    np.savez(file, images=images)
    refused(["prepare", "images", file, "--out", out], capfd, file, "image 1")
    nothing_at(out)


def test_output_folder_that_is_not_empty(raw: Raw, road: Road, tmp_path: Path, capfd: Capture) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    refused(["prepare", "text", raw.text, "--out", mine], capfd, mine, "not empty")
    refused(["prepare", "images", raw.digits, "--out", mine], capfd, mine, "not empty")
    refused(["prepare", "demo", "--out", mine], capfd, mine, "not empty")
    refused(["pretrain", road.text_shards, "--out", mine, "--recipe", "tiny"], capfd, mine, "not empty")
    export = ["export", road.text_run, "--task", "docstring", "--source", raw.folder]
    refused([*export, "--out", mine], capfd, mine, "not empty")
    refused(["evaluate", "--tasks", "digits", "--arms", "none", "--out", mine], capfd, mine, "not empty")
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "out, words", [("s3://bucket/out", "s3://bucket/out is an address"), ("", "output is empty")]
)
def test_output_that_is_no_path(
    raw: Raw, road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, out: str, words: str
) -> None:  # fmt: skip
    """It was written below a folder called s3:, and that of an empty name into the current one."""
    monkeypatch.chdir(tmp_path)
    for command in (
        ["prepare", "text", raw.text],
        ["prepare", "images", raw.digits],
        ["prepare", "demo"],
        ["pretrain", road.text_shards, "--recipe", "tiny"],
        ["export", road.text_run, "--task", "docstring", "--source", raw.folder],
        ["evaluate", "--tasks", "digits", "--arms", "none"],
        ["report", "results"],
        ["draw", road.text_run, "a text"],
    ):
        refused([*command, "--out", out], capfd, words)
    plan = ["plan", "--recipe", "tiny", "--reading.cache", out]
    refused(plan, capfd, words.replace("output", "reading.cache"))
    cached = ["evaluate", "--tasks", "digits", "--arms", "none", "--state-cache", out, "--out", "results"]
    refused(cached, capfd, words.replace("output", "state_cache"))
    assert not list(tmp_path.iterdir())
