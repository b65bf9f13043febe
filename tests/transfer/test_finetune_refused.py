"""Jobs that are refused: graphs of other data, runs that diverge, metrics that are no shares, bad settings."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from transfer_samples import job, write_sst2

from glomo_dist.graphs.index import GraphStoreError
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.readers.models import TextReader
from glomo_dist.transfer.registry import TASKS, get_task


def test_graphs_of_changed_data_are_refused(sample, tmp_path):
    source = write_sst2(tmp_path / "data", seed=2)
    with pytest.raises(GraphStoreError, match="data fingerprint"):
        run(job(source, arm="planted", graphs=sample["planted"]))


@pytest.mark.parametrize("split", ["train.text", "test.text"])
def test_a_store_without_a_split_is_refused_before_the_training(sample, tmp_path, monkeypatch, split):
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    index = tmp_path / "planted" / "index.json"
    shutil.copytree(sample["planted"], index.parent)
    content = json.loads(index.read_text())
    del content["splits"][split]
    index.write_text(json.dumps(content))
    with pytest.raises(GraphStoreError, match=rf"{index.parent} has graphs of 0 examples of '{split}'"):
        run(job(sample["source"], arm="planted", graphs=str(index.parent)))


def test_a_diverging_run_is_an_error(sample):
    with pytest.raises(GlomoError, match=r"loss is (nan|inf) in epoch 1\. Lower lr"):
        run(job(sample["source"], arm="none", lr=1e30, clip=1e30))


def test_a_run_that_diverges_in_its_last_step_is_an_error(sample):
    """The only one: its loss is that of the fresh parameters."""
    with pytest.raises(
        GlomoError, match=r"the parameters are no longer finite in epoch 1\. Lower lr \(now 1e\+38\)"
    ):
        run(job(sample["source"], train_size=32, batch_size=32, epochs=1, lr=1e38))


def measured_as(monkeypatch, metrics):
    monkeypatch.setitem(TASKS, "sst2", dataclasses.replace(get_task("sst2"), measure=lambda *_: metrics))


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ({"accuracy": 50.0}, r"shares in \[0, 1\], got 50\.0 for 'accuracy'"),
        ({"accuracy": -0.1}, ".*got -0.1 for 'accuracy'"),
        ({"accuracy": np.float32("nan")}, r".*got np\.float32\(nan\) for 'accuracy'"),
        ({"accuracy": 0.5, "f1": "0.5"}, ".*got '0.5' for 'f1'"),
        ({"f1": 0.5}, "a dict with the metric 'accuracy', got {'f1': 0.5}"),
        (None, "a dict with the metric 'accuracy', got None"),
    ],
)
def test_a_metric_that_is_no_share_is_refused_when_it_is_first_measured(sample, monkeypatch, metrics, named):
    """Not by the report, which would take the result for damaged."""
    measured_as(monkeypatch, metrics)
    with pytest.raises(ConfigError, match=f"task 'sst2': `measure` must give {named}"):
        run(job(sample["source"], train_size=8, epochs=1))


def test_predictions_that_are_as_long_as_their_batch_are_refused(sample, monkeypatch):
    """One a unit, of batches of other lengths: NumPy would repeat those of length 1 without a word."""

    class PerUnit(TextReader):
        def predict(self, outputs):
            return torch.zeros(len(outputs), len(seen.append(0) or seen), dtype=torch.int64)

    seen = []
    monkeypatch.setattr("glomo_dist.transfer.training.EVALUATION_BATCH", 60)
    monkeypatch.setitem(TASKS, "sst2", dataclasses.replace(get_task("sst2"), model=PerUnit))
    with pytest.raises(
        ConfigError, match=r"`predict` of its reader gave \[20, 2\] for a batch, expected \[20, 1\]"
    ):
        run(job(sample["source"], train_size=8, epochs=1))


def test_metrics_of_numpy_are_written(sample, monkeypatch, tmp_path):
    measured_as(monkeypatch, {"accuracy": np.float32(0.5), "others": np.int64(1)})
    run(job(sample["source"], train_size=8, epochs=1)).write(tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["dev"], found["test"], found["metrics"]) == (0.5, 0.5, {"accuracy": 0.5, "others": 1.0})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"arm": "pretrained"}, "arm 'pretrained' needs graphs"),
        ({"arm": "window0"}, "arm 'window0' needs graphs"),
        *(
            ({name: 0}, f"job: {name} must be at least 1")
            for name in ("epochs", "patience", "batch_size", "hidden", "mixtures", "train_size", "threads")
        ),
        *(
            ({name: 0}, f"job: {name} must be at least 1 or none")
            for name in ("max_examples", "max_units", "keep")
        ),
        ({"features": "learned:0"}, "a width from 1 to 999,999,999"),
        ({"features": "learned:1000000000"}, "a width from 1 to 999,999,999"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("inf")}, "lr must be positive and finite, got inf"),
        ({"mixture_lr_factor": 0.0}, "mixture_lr_factor"),
        ({"mixture_lr_factor": float("inf")}, "mixture_lr_factor must be positive and finite"),
        ({"clip": float("nan")}, "clip must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"mixture_scale": float("nan")}, "mixture_scale must be finite"),
        ({"mixture_scale": float("inf")}, "mixture_scale must be finite"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and at least 0"),
    ],
)
def test_bad_jobs(fields, named):
    with pytest.raises(ConfigError, match=named):
        FinetuneJob("sst2", **fields)


def test_what_is_no_job():
    with pytest.raises(ConfigError, match="takes a FinetuneJob, got dict"):
        run({"task": "sst2"})


def test_features_must_fit_the_task(sample):
    with pytest.raises(ConfigError, match="words"):
        run(job(sample["source"], "pixels"))
    with pytest.raises(ConfigError, match="pixels"):
        run(FinetuneJob("digits", features="learned"))
    with pytest.raises(ConfigError, match="cannot be cut"):
        run(FinetuneJob("digits", features="pixels", max_units=5))
    with pytest.raises(ConfigError, match="Did you mean 'sst2'"):
        run(FinetuneJob("sst", features="learned"))
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        run(job(sample["source"], str(sample["folder"] / "none.npz")))
