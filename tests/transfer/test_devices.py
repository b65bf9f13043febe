"""Task models and predictors on another device than the processor: on `meta`, which refuses to compute with tensors
of the processor as a GPU does, and on a GPU where there is one."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch
from encoder_samples import write_bert
from transfer_samples import WORDS, job, word_model, write_sst2

from glomo_dist.graphs import export
from glomo_dist.graphs.index import GraphStoreError
from glomo_dist.graphs.store import GraphStore
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer import finetune, training
from glomo_dist.transfer.export import export_task
from glomo_dist.transfer.features import states
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.readers.choice import ChoiceReader
from glomo_dist.transfer.readers.esim import PairReader
from glomo_dist.transfer.readers.models import PixelReader, ReaderSizes, TextReader
from glomo_dist.transfer.readers.resnet import ResNetReader
from glomo_dist.transfer.readers.sequences import Sequences
from glomo_dist.transfer.readers.spans import SpanReader

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
META = torch.device("meta")


def texts(*lengths):
    return Sequences(torch.randn(len(lengths), 7, 6, device=META), torch.tensor(lengths, device=META))


READERS = {
    "text": (TextReader, [texts(7, 3)], torch.zeros(2, dtype=torch.int64)),
    "pairs": (PairReader, [texts(7, 3), texts(1, 5)], torch.zeros(2, dtype=torch.int64)),
    "spans": (SpanReader, [texts(7, 3), texts(2, 4)], torch.zeros(2, 2, dtype=torch.int64)),
    "options": (
        ChoiceReader,
        [texts(7, 3), texts(2, 4), texts(1, 2, 3, 4)],
        torch.zeros(2, dtype=torch.int64),
    ),
}


@pytest.mark.parametrize("cell", ["gru", "lstm", "bag"])
@pytest.mark.parametrize("kind", READERS)
def test_readers_make_no_tensor_on_the_processor(kind, cell):
    reader, columns, labels = READERS[kind]
    reader = reader(ReaderSizes(6, 4, 3, 0.1, cell, own=2)).to(META)
    outputs = reader(*columns)
    loss = reader.loss(outputs, labels.to(META))
    loss.backward()
    assert loss.device == reader.predict(outputs).device == META
    assert all(p.grad is None or p.grad.device == META for p in reader.parameters())


@pytest.mark.parametrize("reader", [PixelReader, ResNetReader])
def test_readers_of_images_make_no_tensor_on_the_processor(reader):
    reader = reader(ReaderSizes(6, 4, 3, 0.1, shape=(8, 8), own=2)).to(META)
    image = Sequences(torch.randn(2, 64, 6, device=META), torch.tensor([64, 64], device=META))
    reader.loss(reader(image), torch.zeros(2, dtype=torch.int64, device=META)).backward()
    assert all(p.grad.device == META for p in reader.parameters())


@pytest.mark.parametrize("features", ["learned:6", "trnn:learned:6", "vectors"])
@pytest.mark.parametrize(("arm", "conditioned"), [("planted", True), ("planted", False), ("window2", False)])
def test_a_step_of_training_stays_on_the_device(sample, monkeypatch, features, arm, conditioned):
    """From the arrays of a batch to the gradients, graphs and features included."""
    seen = []

    def fit(self, began):
        self.device = META
        self.modules.to(META)
        columns, labels = self._columns("train", self.train[:4])
        outputs = self.model(columns)
        loss = self.model.reader.loss(outputs, labels)
        loss.backward()
        seen.extend([loss, self.model.reader.predict(outputs), *(p.grad for p in self.parameters)])
        seen.extend(self._weights(sequences) for sequences in columns.values())
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "fit", fit)
    features = sample["vectors"] if features == "vectors" else features
    with pytest.raises(KeyboardInterrupt):
        run(job(sample["source"], features, arm=arm, graphs=sample["planted"], conditioned=conditioned))
    assert len(seen) > 5
    assert {x.device for x in seen if x is not None} == {META}


@without_gpu
def test_a_gpu_that_is_not_there_is_refused_first(sample, tmp_path):
    with pytest.raises(ConfigError, match=r"a GPU is asked for, and .*Without --device cuda and --job-gpus"):
        run(dataclasses.replace(job("no such folder"), device="cuda"))
    with pytest.raises(ConfigError, match="a GPU is asked for"):
        export_task("sst2", "no such model", tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


def test_an_export_goes_on_where_it_was_begun(tmp_path, monkeypatch):
    """Not on another device; stores of before there was a choice are of the processor."""
    source = write_sst2(tmp_path / "data", sizes=(6, 4, 4))
    model = word_model(tmp_path / "model")
    out = export_task("sst2", model, tmp_path / "out", source=source)
    settings = out / export.SETTINGS
    written = json.loads(settings.read_text())
    assert written.pop("device") == "cpu"
    settings.write_text(json.dumps(written))
    export_task("sst2", model, out, source=source)
    monkeypatch.setattr(export, "device_of", lambda model: torch.device("cuda"))
    with pytest.raises(
        GraphStoreError, match="begun with other settings: device is 'cpu' there and 'cuda' now"
    ):
        export_task("sst2", model, out, source=source)


def test_a_gpu_computes_in_float32(sample, tmp_path, monkeypatch):
    """With cuDNN's default, TF32, weights of graphs would be percents away from the processor's."""
    layers = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    seen = []

    def look(*arguments):
        seen.extend(layer.fp32_precision for layer in layers)
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "device_of", lambda model: torch.device("cuda"))
    monkeypatch.setattr(export, "predict_chunk", look)
    with pytest.raises(KeyboardInterrupt):
        export_task("sst2", word_model(tmp_path / "model"), tmp_path / "out", source=sample["source"])
    monkeypatch.setattr(finetune, "require_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    monkeypatch.setattr(finetune, "encode", look)
    for device in ("cuda", "cpu"):
        with pytest.raises(KeyboardInterrupt):
            run(dataclasses.replace(job(sample["source"]), device=device))
    assert seen == 4 * ["ieee"] + [layer.fp32_precision for layer in layers]
    assert "ieee" not in seen[4:]


def test_the_states_of_an_encoder_are_computed_on_the_device_of_the_job(sample, tmp_path, monkeypatch):
    def look(folder, layer, pool, device):
        seen.append(device)
        raise KeyboardInterrupt

    seen = []
    monkeypatch.setattr(states, "Encoder", look)
    monkeypatch.setattr(finetune, "require_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    encoder = job(
        sample["source"], f"hf:{write_bert(tmp_path / 'bert')}", state_cache=str(tmp_path / "cache")
    )
    for device in ("cuda", "cpu"):
        with pytest.raises(KeyboardInterrupt):
            run(dataclasses.replace(encoder, device=device))
    assert seen == ["cuda", "cpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [None, 2])
def test_graphs_of_a_gpu_are_those_of_the_processor(tmp_path, keep):
    source = write_sst2(tmp_path / "data", sizes=(60, 4, 4))
    # Of words it does not know all scores are one, but for rounding, which then decides which edges are kept.
    words = dict.fromkeys((*WORDS, "good", "bad", "alpha", "beta"))
    model = word_model(tmp_path / "model", words, width=32)
    stores = [
        GraphStore.open(export_task("sst2", model, tmp_path / d, source=source, keep=keep, device=d))
        for d in ("cpu", "cuda")
    ]
    for expected, got in zip(*(store.batch("train.text", range(60)) for store in stores), strict=True):
        torch.testing.assert_close(got.dense(), expected.dense(), rtol=1e-2, atol=1e-3)  # of float16


@pytest.mark.gpu
@pytest.mark.parametrize("reader", ["gru", "lstm", "bag"])
@pytest.mark.parametrize("features", ["learned", "encoder"])
def test_a_job_learns_on_a_gpu_what_it_learns_on_the_processor(sample, tmp_path, reader, features):
    """The random numbers of dropout differ, so there is none."""
    features = "hf:" + str(write_bert(tmp_path / "bert")) if features == "encoder" else features
    fields = {"arm": "planted", "graphs": sample["planted"], "dropout": 0.0, "reader": reader}
    results = [
        run(
            dataclasses.replace(
                job(sample["source"], features, state_cache=str(tmp_path / d), **fields), device=d
            )
        )
        for d in ("cpu", "cuda")
    ]
    losses = [[epoch.train_loss for epoch in result.curve] for result in results]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
    assert results[1].test == pytest.approx(results[0].test, abs=0.05)


@pytest.mark.gpu
def test_graphs_that_a_job_computes_on_a_gpu(tmp_path):
    source = write_sst2(tmp_path / "data")
    model = str(word_model(tmp_path / "model", words=("film", "good", "bad", "alpha", "beta")))
    fields = {"arm": "live", "graphs": model, "dropout": 0.0}
    results = [run(dataclasses.replace(job(source, **fields), device=d)) for d in ("cpu", "cuda")]
    losses = [[epoch.train_loss for epoch in result.curve] for result in results]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)
