"""What commands say of their own accord: what is unknown, and what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_samples import Capture, run
from transfer_samples import WORDS, write_sst2

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
