"""A task of one's own that tags each unit, of texts that are cut already, through the commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from cli_samples import Capture, run

from glomo_dist.data import WordTokenizer, between_spaces
from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.transfer import FinetuneJob, Row, finetune, get_task, text_data
from glomo_dist.transfer.registry import TASKS

TASK_FILE = """
import numpy as np
from torch import nn

from glomo_dist.transfer import Column, Reader, Split, Task, checked

LONGEST = 4


def load(source, max_examples=None):
    texts = [["un", "##seen", "##s"][: 1 + i % 3] for i in range(12)]
    labels = np.full((len(texts), LONGEST), -100)
    for row, units in zip(labels, texts):
        row[: len(units)] = [unit.startswith("##") for unit in units]
    split = Split({"text": Column(texts, np.arange(len(texts))[:, None])}, labels)
    return checked("inside", {name: split for name in ("train", "dev", "test")}, ("first", "further"))


class Tagger(Reader):
    def __init__(self, sizes):
        super().__init__()
        self.tag = nn.Linear(sizes.width, sizes.classes)

    def forward(self, text):
        return nn.functional.pad(self.tag(text.units), (0, 0, 0, LONGEST - text.units.shape[1]))

    def loss(self, outputs, labels):
        return nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())


def measure(split, predictions):
    real = split.labels >= 0
    return {"right": (predictions == split.labels)[real].mean()}


TASK = Task(
    name="inside", version=1, unit="words", load=load, columns={"text": LONGEST}, model=Tagger, data_source="made up",
    measure=measure, metric="right",
)
"""


def test_a_tag_for_each_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inside.py").write_text(TASK_FILE)
    tokenizer = WordTokenizer(("<unk>", "un", "##seen", "##s"))
    torch.manual_seed(0)
    config = GlomoConfig(width=8, heads=2, layers=2, vocab_size=tokenizer.vocab_size)
    save_model("run/model", Glomo(config), tokenizer.to_json())
    assert run(["export", "run", "--task", "inside.py", "--out", "graphs"]) == 0
    command = [
        "evaluate",
        "--tasks",
        "inside.py",
        "--arms",
        "pretrained=graphs",
        "--seeds",
        "0",
        "--epochs",
        "1",
    ]
    assert run([*command, "--executor", "process", "--out", "results"]) == 0, capfd.readouterr().err
    (path,) = Path("results/results").glob("*/result.json")
    result = json.loads(path.read_text())
    assert 0 <= result["test"] <= 1 and result["unknown_to_predictor"] == 0
    assert run(["report", "results", "--tasks", "inside.py"]) == 0, capfd.readouterr().err
    page = Path("report.html").read_text()
    assert "inside, test example" in page and "Not drawn" not in page


def test_texts_are_cut_as_the_task_says() -> None:
    rows = {split: [Row({"text": "un ##seen"}, 0, "row 0")] for split in ("train", "dev", "test")}
    data = text_data("cut", rows, ("a",), None, filled=("text",), cut=between_spaces)
    assert data.splits["test"].columns["text"].values == [["un", "##seen"]]


def test_the_most_frequent_class_is_for_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a correlation, or an F1, the report would say what it is not."""
    digits = get_task("digits")
    other = dataclasses.replace(digits, measure=lambda *_: {"r": 0.5}, metric="r")
    monkeypatch.setitem(TASKS, "digits", other)
    job = FinetuneJob(
        "digits", arm="none", features="pixels", epochs=1, train_size=8, hidden=4, max_examples=20
    )
    assert finetune.run(job).majority is None
