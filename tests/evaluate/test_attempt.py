"""One job in this process: in what order its files appear, its threads, and what it prints."""

from __future__ import annotations

import os
import sys

import pytest
from evaluate_jobs import job, read
from threadpoolctl import threadpool_info

from glomo_dist.evaluate.attempt import LAST_LINES, attempt, is_finished, job_folder, log_tail
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import GlomoError


def test_the_result_comes_last(tmp_path, marks, monkeypatch):
    """With it the job counts as finished, and what it ran on would never be written."""

    def full(path, content):
        if path.name == "job.json":
            raise OSError("the disk is full")
        json_files.write_json(path, content)

    monkeypatch.setattr("glomo_dist.evaluate.attempt.write_json", full)
    with pytest.raises(GlomoError, match="the disk is full"):
        attempt(lambda work: {}, job("double", marks), tmp_path)
    assert not is_finished(tmp_path, "double-0")


def test_blas_has_the_threads_of_its_job(tmp_path, marks):
    """Not PyTorch alone."""

    def threads(_=None):
        return {"threads": [pool["num_threads"] for pool in threadpool_info()]}

    before = threads()
    attempt(threads, job("double", marks, cores=2), tmp_path)
    found = read(tmp_path, "double-0")["threads"]
    assert set(found) == {2} and len(found) == len(before["threads"]) and threads() == before


def test_what_a_job_prints_is_in_its_log_and_no_longer_on_the_terminal(tmp_path, marks, monkeypatch, capfd):
    """Also what does not go through Python, and the traceback."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        monkeypatch.setattr(sys, name, os.fdopen(number, "w", closefd=False))

    def run(work):
        print("said")
        os.write(2, b"from below\n")
        if work.kind == "raise":
            raise ValueError("no")
        return {}

    print("before")
    descriptors = os.listdir("/proc/self/fd")
    for kind in ("double", "raise"):
        attempt(run, job(kind, marks), tmp_path, capture=True)
    assert os.listdir("/proc/self/fd") == descriptors
    print("after", flush=True)
    print("after", file=sys.stderr, flush=True)
    assert capfd.readouterr() == ("before\nafter\n", "after\n")
    assert sorted(log_tail(tmp_path, "double-0").splitlines()) == ["from below", "said"]
    words = log_tail(tmp_path, "raise-0")
    assert "said" in words and "in run" in words and words.rstrip().endswith("ValueError: no")


def test_the_last_words_are_the_last_lines(tmp_path):
    """Of a log that ends in the middle of a character, too."""
    folder = job_folder(tmp_path, "loud")
    folder.mkdir(parents=True)
    lines = [f"line {i}" for i in range(2 * LAST_LINES)]
    (folder / "log.txt").write_bytes("\n".join([*lines, "é"]).encode()[:-1])
    assert log_tail(tmp_path, "loud").splitlines() == [*lines[1 - LAST_LINES :], "\ufffd"]
    assert log_tail(tmp_path, "silent") == ""
