"""The inference tasks: their published formats, bad rows, the reader, and the road from texts to a result."""

import gzip
import json
import random

import numpy as np
import pytest
from pair_samples import PAIRS, SHARED, shared, snli_row, texts, write_jsonl, write_snli, write_table
from transfer_samples import WORDS, word_model, write_vectors

from glomo_dist.graphs.index import GraphStoreError
from glomo_dist.graphs.store import GraphStore
from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.dataset import Split, accuracy
from glomo_dist.transfer.export import export_task
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.registry import get_task


def test_rte_holds_out_whole_premises(tmp_path):
    header = ["index", "sentence1", "sentence2", "label"]
    rows = [
        [str(i), f"Premise number {i // 2}.", f"Claim {i}.", ("entailment", "not_entailment")[i % 2]]
        for i in range(200)
    ]
    write_table(tmp_path / "train.tsv", header, rows)
    write_table(tmp_path / "dev.tsv", header, [*rows[:5], ["5", "A man sleeps.", "A man dreams.", "-"]])
    data = get_task("rte").load(str(tmp_path), None)
    assert data.skipped == {"test: no gold label (-)": 1}
    sizes = {name: len(split.labels) for name, split in data.splits.items()}
    assert sizes["train"] + sizes["dev"] == 200
    assert 4 <= sizes["dev"] <= 50
    assert sizes["test"] == 5
    train, dev = ({tuple(w) for w in texts(data.splits[s], "premise")} for s in ("train", "dev"))
    assert not train & dev


def test_mnli_reports_matched_and_mismatched_apart(tmp_path):
    pairs = [(f"Premise {i}.", f"Claim {i}.", ("entailment", "neutral")[i % 2]) for i in range(100)]
    write_jsonl(tmp_path / "multinli_1.0" / "multinli_1.0_train.jsonl", pairs)
    write_jsonl(tmp_path / "multinli_1.0" / "multinli_1.0_dev_matched.jsonl", [*PAIRS, *pairs[:2]])
    content = "".join(json.dumps(snli_row(*pair)) + "\n" for pair in pairs[:3])
    packed = tmp_path / "multinli_1.0" / "multinli_1.0_dev_mismatched.jsonl.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    data = get_task("mnli").load(str(tmp_path), None)
    test = data.splits["test"]
    assert test.groups == ("matched",) * 5 + ("mismatched",) * 3
    assert data.skipped == {"test: no gold label (-)": 1}
    wrong = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    found = accuracy(test, np.where(wrong, (test.labels + 1) % 3, test.labels))
    assert found == {"accuracy": 7 / 8, "accuracy.matched": 1.0, "accuracy.mismatched": pytest.approx(2 / 3)}


def test_sick_table(tmp_path):
    header = ["pair_ID", "sentence_A", "sentence_B", "entailment_label", "relatedness_score", "SemEval_set"]
    rows = [
        [str(i), "A dog runs", "An animal runs", "ENTAILMENT", "4.5", name]
        for i, name in enumerate(("TRAIN", "TRIAL", "TEST", "TEST"))
    ]
    write_table(tmp_path / "SICK.txt", header, [*rows, ["9", "A dog runs", "A cat", "-", "2", "TRIAL"]])
    data = get_task("sick").load(str(tmp_path), None)
    assert data.skipped == {"dev: no gold label (-)": 1}
    assert {name: s.labels.tolist() for name, s in data.splits.items()} == {
        "train": [0],
        "dev": [0],
        "test": [0, 0],
    }
    write_table(tmp_path / "SICK.txt", header, [*rows, [*rows[0][:5], "VALID"]])
    with pytest.raises(
        DataError,
        match=r"line 6: SemEval_set must be one of TRAIN, TRIAL, TEST, got 'VALID'. Correct or remove",
    ):
        get_task("sick").load(str(tmp_path), None)


def test_sick_in_the_files_of_semeval(tmp_path):
    header = ["pair_ID", "sentence_A", "sentence_B", "relatedness_score", "entailment_judgment"]
    for number, name in enumerate(("train", "trial", "test_annotated")):
        label = ("NEUTRAL", "CONTRADICTION", "ENTAILMENT")[number]
        rows = [[str(i), f"{name} {i} runs", "An animal runs", "4.5", label] for i in range(number + 1)]
        write_table(tmp_path / f"SICK_{name}.txt", header, rows)
    data = get_task("sick").load(str(tmp_path), None)
    labels = {name: split.labels.tolist() for name, split in data.splits.items()}
    assert labels == {"train": [1], "dev": [2, 2], "test": [0, 0, 0]}
    (tmp_path / "SICK_trial.txt").unlink()
    with pytest.raises(DataError, match=r"SICK_trial\.txt"):
        get_task("sick").load(str(tmp_path), None)


def test_accuracy_without_groups():
    split = Split({}, np.array([0, 1, 2, 1]))
    assert accuracy(split, np.array([0, 1, 1, 0])) == {"accuracy": 0.5}


def write_containment(folder, sizes):
    """Does the one word of the hypothesis occur in the premise? No text alone can tell."""
    draw = random.Random(3)
    for split, size in zip(("train", "dev", "test"), sizes, strict=True):
        pairs = []
        for i in range(size):
            words = draw.sample(WORDS[:14], 5)
            inside = i % 2 == 0
            pairs.append(
                (" ".join(words[:4]), words[0] if inside else words[4], "entailment" if inside else "neutral")
            )
        write_jsonl(folder / f"snli_1.0_{split}.jsonl", pairs)
    return str(folder)


def test_the_reader_compares(tmp_path):
    """Export of real graphs, one store section per column, training, a result; the words must be compared."""
    source = write_containment(tmp_path / "data", (400, 100, 100))
    folder = word_model(tmp_path / "model", words=WORDS[:6])
    store = export_task("snli", folder, tmp_path / "store", source=source)
    opened = GraphStore.open(store)
    data = get_task("snli").load(source, None)
    assert set(opened.splits) == {f"{s}.{c}" for s in data.splits for c in ("premise", "hypothesis")}
    for name, split in data.splits.items():
        for column, texts_ in split.columns.items():
            assert opened.units(f"{name}.{column}").tolist() == [len(words) for words in texts_.values]
    assert opened.splits["train.hypothesis"].examples <= 14, "few distinct hypotheses, each exported once"
    fields = {"features": write_vectors(tmp_path / "vectors.npz"), "hidden": 16, "lr": 1e-2, "dropout": 0.0}
    job = FinetuneJob("snli", "pretrained", source, str(store), epochs=6, patience=6, **fields)
    result = run(job)
    assert result.test > 0.85
    assert result.metrics == {"accuracy": result.test}
    assert result.skipped == {}
    assert result.mixtures and result.mixtures[0].direction == "forward"
    short = FinetuneJob("snli", "pretrained", source, str(store), max_units=3, **fields)
    with pytest.raises(GraphStoreError, match="max_units"):
        run(short)


@shared
def test_shared_sets_have_the_published_sizes():
    snli = get_task("snli").load(str(SHARED), None)
    assert sum(np.bincount(s.labels) for s in snli.splits.values()).tolist() == [3329, 3235, 3278]
    premises = [{tuple(w) for w in texts(snli.splits[s], "premise")} for s in ("train", "test")]
    assert len(snli.splits["train"].columns["premise"].values) < len(snli.splits["train"].labels) / 2
    assert len(premises[0] & premises[1]) <= 5  # parts are by premise; a few differ in case only
    rte = get_task("rte").load(str(SHARED), None)
    sizes = {name: len(s.labels) for name, s in rte.splits.items()}
    assert (sizes["train"] + sizes["dev"], sizes["test"]) == (2490, 277)
    mnli = get_task("mnli").load(str(SHARED), 300)
    assert set(mnli.splits["test"].groups) == {"matched", "mismatched"}
    sick = get_task("sick").load(str(SHARED), None)
    assert sum(len(s.labels) for s in sick.splits.values()) == 9927


def test_a_split_without_examples_says_why(tmp_path):
    source = write_snli(tmp_path / "snli")
    write_jsonl(tmp_path / "snli" / "snli_1.0_train.jsonl", [("A man sleeps.", "A man dreams.", "-")] * 3)
    reason = r"the train split has no example \(3 left out: no gold label \(-\)\)\. Check the files"
    with pytest.raises(DataError, match=reason):
        get_task("snli").load(source, None)
    header, pair = ["sentence1", "sentence2", "label"], ["A man sleeps.", "A man rests.", "entailment"]
    for split in ("train", "dev"):
        write_table(tmp_path / "rte" / f"{split}.tsv", header, [pair])
    drawn = r"the dev split has no example\. It is one premise in 10 of train, chosen by its hash: is there enough"
    with pytest.raises(DataError, match=drawn):
        get_task("rte").load(str(tmp_path / "rte"), None)
