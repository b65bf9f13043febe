"""What commands say of their own accord: what is unknown, and what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_samples import Capture, run
from transfer_samples import WORDS, word_model, write_sst2

from glomo_dist.transfer.result import Result

QUICK = ["--epochs", "1", "--hidden", "2", "--executor", "process"]


@pytest.mark.parametrize("known, said", [(["film"], 1), ([*WORDS, "bad", "good"], 0)])
def test_vectors_that_know_few_of_the_words(
    tmp_path: Path, capfd: Capture, known: list[str], said: int
) -> None:
    source, vectors = write_sst2(tmp_path / "data", sizes=(16, 8, 8)), tmp_path / "vectors.npz"
    np.savez(vectors, words=np.array(known), vectors=np.ones((len(known), 3)))
    command = ["evaluate", "--tasks", "sst2", "--sources", f"sst2={source}", "--features", vectors, *QUICK]
    command += ["--arms", "none", "uniform", "--seeds", "0", "1", "--out", tmp_path / "out"]
    assert run(command) == 0
    error = capfd.readouterr().err
    assert error.count("WARNING") == error.count("of the words of task 'sst2' have no vector in") == said
    shares = {
        json.loads(path.read_text())["without_vector"]["words"]
        for path in (tmp_path / "out").glob("results/*/result.json")
    }
    assert len(shares) == 1 and (shares.pop() > 0.5) == said


def test_an_evaluation_reads_each_result_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To know what is finished, to compare its data, to say what it has to say."""
    source, read, paths = write_sst2(tmp_path / "data", sizes=(16, 8, 8)), Result.read, []
    monkeypatch.setattr(Result, "read", lambda path: paths.append(path) or read(path))
    command = ["evaluate", "--tasks", "sst2", "--sources", f"sst2={source}", *QUICK]
    command += ["--arms", "none", "uniform", "--seeds", "0", "--out", tmp_path / "out"]
    for _ in ("all are to do", "all are finished"):
        paths.clear()
        assert run(command) == 0
        assert len(paths) == len(set(paths)) == 2


def test_examples_that_are_left_out(tmp_path: Path, capfd: Capture) -> None:
    """By the export, and once by an evaluation of several jobs, also when all are finished already."""
    for part, without in (("train", 3), ("dev", 1), ("test", 1)):
        lines = [
            json.dumps({"sentence1": "a good film", "sentence2": "a film", "gold_label": label})
            for label in ["-"] * without + ["entailment", "neutral"] * 3
        ]
        (tmp_path / f"snli_1.0_{part}.jsonl").write_text("\n".join(lines))
    said = "left out: 3 train: no gold label (-), 1 dev: no gold label (-), 1 test: no gold label (-)"
    model = word_model(tmp_path / "model")
    assert run(["export", model, "--task", "snli", "--source", tmp_path, "--out", tmp_path / "store"]) == 0
    assert said in capfd.readouterr().err
    command = ["evaluate", "--tasks", "snli", "--sources", f"snli={tmp_path}", *QUICK]
    command += ["--arms", "none", "uniform", "--seeds", "0", "--out", tmp_path / "out"]
    for _ in range(2):
        assert run(command) == 0
        assert capfd.readouterr().err.count(said) == 1


def test_what_is_for_ray_is_warned_of_without_it(tmp_path: Path, capfd: Capture) -> None:
    source = write_sst2(tmp_path / "data", sizes=(16, 8, 8))
    command = ["evaluate", "--tasks", "sst2", "--sources", f"sst2={source}", *QUICK]
    command += ["--arms", "none", "--seeds", "0", "--out", tmp_path / "out"]
    assert run([*command, "--address", "auto", "--cores", "2", "--job-memory-gb", "1.5"]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    for line, flag in zip(said, ("--address auto", "--cores 2", "--job-memory-gb 1.5"), strict=True):
        assert line == f"WARNING: evaluate: {flag} is for Ray and changes nothing here."
