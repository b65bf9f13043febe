"""What a result says beside its scores: of the job, of the data, of the graphs; and the model that a job makes."""

import dataclasses

import numpy as np
import pytest
import torch
from pair_samples import write_jsonl
from transfer_samples import (
    WORDS,
    job,
    planted_store,
    with_any_mixture,
    word_model,
    write_sst2,
    write_vectors,
)

from glomo_dist.graphs.store import GraphStore
from glomo_dist.transfer import finetune
from glomo_dist.transfer.features.coverage import Unknown
from glomo_dist.transfer.features.inputs import Inputs, encode
from glomo_dist.transfer.features.modules import Features
from glomo_dist.transfer.finetune import build, run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.registry import TASKS, get_task


@pytest.fixture
def source(tmp_path):
    return write_sst2(tmp_path / "data", sizes=(20, 8, 8))


def changed(monkeypatch, **fields):
    monkeypatch.setitem(TASKS, "sst2", dataclasses.replace(get_task("sst2"), **fields))


def test_a_result_tells_no_secret_of_an_address(source, monkeypatch):
    load = get_task("sst2").load
    changed(monkeypatch, load=lambda _, max_examples: load(source, max_examples))
    result = run(job("https://me:sesame@host/SST-2?token=sesame", epochs=1))
    assert result.job["task_source"] == "https://host/SST-2"


def test_what_was_left_out_and_has_no_vector(source, tmp_path, monkeypatch):
    data = get_task("sst2").load(source, None)
    skipped = {"train: no gold label": 3}
    changed(monkeypatch, load=lambda *_: dataclasses.replace(data, skipped=skipped))
    result = run(job(source, write_vectors(tmp_path / "vectors.npz"), epochs=1))
    texts = [text for split in data.splits.values() for text in split.columns["text"].values]
    words = [word for text in texts for word in text]
    assert result.skipped == skipped
    assert result.without_vector == Unknown(len(texts) / len(words), 2 / len(set(words)))  # alpha or beta


def test_the_metric_of_the_task_is_that_of_test_and_dev(source, monkeypatch):
    """Wherever it stands among the others; the share of the largest class is nothing to compare another with."""
    changed(monkeypatch, metric="f1", measure=lambda *_: {"accuracy": 0.25, "f1": 0.75})
    result = run(job(source, epochs=2, patience=2))
    assert (result.metric, result.test, result.dev, result.majority) == ("f1", 0.75, 0.75, None)
    times = [0, *(epoch.seconds for epoch in result.curve), result.seconds]
    assert times == sorted(times) and len(times) == 4


@pytest.mark.parametrize("arm", ["none", "planted"])
def test_only_an_arm_with_graphs_has_any(source, tmp_path, arm):
    """The other takes the size of the mixture from them."""
    store = planted_store(tmp_path / "store", source)
    info, result = GraphStore.open(store).info, run(job(source, arm=arm, graphs=store, epochs=1))
    assert result.fingerprints["graphs"] == info.fingerprint
    found = result.components, len(result.mixtures), result.fingerprints["model"]
    assert found == (((), 0, None) if arm == "none" else (("G0.0", "G0.1"), 2, info.model))


def test_a_job_computes_with_its_threads(source, monkeypatch):
    def look(*_):
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(finetune, "encode", look)
    for threads in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(job(source, threads=threads))
    assert seen == [1, 2] and torch.get_num_threads() == before


def test_a_model_is_made_as_the_job_says():
    inputs = Inputs({}, Features(), 7, None, None)
    fields = {"arm": "window3", "reader": "bag", "hidden": 5, "dropout": 0.25, "mixtures": 2}
    model = build(FinetuneJob("snli", **fields), get_task("snli"), inputs, 3, (2, 4))
    assert (model.window, model.dropout.p, model.reader.dropout.p) == (3, 0.25, 0.25)
    assert model.reader.own == 7 and model.fusion.out == 7 * (1 + 2 * 2)
    assert model.mixture.logits.shape == (2, 2, (2 * 2 - 1) * 4) and model.reader.classify.out_features == 3


def test_the_weights_of_a_result_are_the_mean_over_all_words_of_all_texts(tmp_path, monkeypatch):
    """Of both columns of a pair; a text without a word, which some tasks allow, has none."""
    made = with_any_mixture(monkeypatch)
    monkeypatch.setattr("glomo_dist.transfer.datasets.splits._require_words", lambda *_: None)
    for split in ("train", "dev", "test"):
        pairs = [
            ("a film with good actors", "", "neutral"),
            ("bad script", "the voice keeps us", "entailment"),
        ]
        write_jsonl(tmp_path / f"snli_1.0_{split}.jsonl", pairs)
    source, vectors = str(tmp_path), write_vectors(tmp_path / "vectors.npz")
    fields = {
        "graphs": str(word_model(tmp_path / "model", WORDS)),
        "conditioned": True,
        "epochs": 1,
        "lr": 1e-9,
    }
    found = run(FinetuneJob("snli", "live", source, features=vectors, hidden=4, **fields)).mixtures
    task = get_task("snli")
    inputs = encode(task.load(source, None), "words", vectors, task.limits(None), 4)
    words = []
    for name, column in inputs.splits["test"].columns.items():
        texts = [column.batch(np.array([i])) for i in range(2)]
        words += [inputs.features(f"test.{name}", text)[0, : int(text.lengths[0])] for text in texts]
    expected = made[0].mixture.weights(torch.cat(words)[None]).mean((2, 3)).flatten(0, 1)
    torch.testing.assert_close(torch.tensor([m.weights for m in found]), expected.detach())
