"""Pairs of sentences in the published files of SNLI and its relatives."""

import json
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "nli"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
PAIRS = [
    ("A man sleeps.", "A man is awake.", "contradiction"),
    ("A man sleeps.", "A person rests.", "entailment"),
    ("A man sleeps.", "A man dreams.", "-"),
    ('She said "no"', "She said it twice.", "neutral"),
]


def snli_row(premise, hypothesis, label):
    return {
        "annotator_labels": [label], "captionID": "1.jpg#0", "gold_label": label, "pairID": "1.jpg#0r1n",
        "sentence1": premise, "sentence1_binary_parse": "( A man )", "sentence2": hypothesis,
    }  # fmt: skip


def write_jsonl(path, pairs, row=snli_row):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row(*pair)) + "\n" for pair in pairs))


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(cells) + "\n" for cells in [header, *rows]))


def texts(split, column):
    """The words of every example in a column, the repeated ones too."""
    return [split.columns[column].values[v] for v in split.columns[column].of[:, 0]]


def write_snli(folder, pairs=PAIRS):
    for split in ("train", "dev", "test"):
        write_jsonl(folder / f"snli_1.0_{split}.jsonl", pairs)
    return str(folder)
