"""The training of a task model: epochs, the best of them on dev, the metrics of test."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glomo_dist.graphs.index import DIRECTIONS
from glomo_dist.graphs.store import GraphStore
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.transfer.datasets.dataset import Task, TaskData, section
from glomo_dist.transfer.datasets.splits import draw
from glomo_dist.transfer.features.inputs import Inputs, bucketed, by_length
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.readers.models import TaskModel
from glomo_dist.transfer.readers.sequences import Sequences
from glomo_dist.transfer.result import Epoch, MixedGraph

EVALUATION_BATCH = 128  # examples; memory stays small, and dropout-free passes need no more


class Training:
    """The state of one run: examples, model, optimizer."""

    def __init__(
        self,
        job: FinetuneJob,
        task: Task,
        data: TaskData,
        inputs: Inputs,
        model: TaskModel,
        store: GraphStore | None,
    ) -> None:
        self.job, self.task, self.data, self.model, self.store = job, task, data, model, store
        self.splits, self.features, self.device = inputs.splits, inputs.features, torch.device(job.device)
        available = len(self.splits["train"].labels)
        self.train = np.array(draw(available, job.train_size, "train subset", job.seed), np.int64)
        self.modules = nn.ModuleList([self.features, model]).to(self.device)
        self.parameters = list(self.modules.parameters())
        mixture = list(model.mixture.parameters())
        others = [p for p in self.parameters if all(p is not m for m in mixture)]
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": mixture, "lr": job.lr * job.mixture_lr_factor},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=job.lr, weight_decay=job.weight_decay, fused=True)
        steps = job.epochs * math.ceil(len(self.train) / job.batch_size)
        fall = (lambda step: 1 - step / steps) if job.schedule == "linear" else (lambda step: 1.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, fall)

    def fit(self, began: float) -> tuple[list[Epoch], int]:
        """Train; leave the parameters of the best dev epoch in the model.

        Returns the curve and the index of that epoch.
        """
        curve: list[Epoch] = []
        best, best_state = 0, {}
        for epoch in range(1, self.job.epochs + 1):
            loss = self._epoch(epoch)
            dev = self._measure("dev")[self.task.metric]
            curve.append(Epoch(epoch, loss, dev, time.perf_counter() - began))
            if len(curve) == 1 or dev > curve[best].dev:
                best = len(curve) - 1
                best_state = {name: value.clone() for name, value in self.modules.state_dict().items()}
            if len(curve) - 1 - best >= self.job.patience:
                break
        self.modules.load_state_dict(best_state)
        return curve, best

    def test(self) -> tuple[dict[str, float], tuple[MixedGraph, ...]]:
        """All test metrics, and the mixed graphs as they stand."""
        sums: list[Tensor] = []
        metrics = self._measure("test", sums)
        if self.store is None:
            return metrics, ()
        weights = torch.stack(sums).sum(0)
        weights = weights / weights.sum(-1, keepdim=True)
        scale = self.model.mixture.scale.detach()
        return metrics, tuple(
            MixedGraph(direction, float(scale[x, m]), tuple(weights[x, m].tolist()))
            for x, direction in enumerate(DIRECTIONS)
            for m in range(self.job.mixtures)
        )

    def _epoch(self, epoch: int) -> float:
        examples = self.splits["train"]
        generator = np.random.default_rng(derive_seed("order", self.job.seed, epoch))
        self.modules.train()
        total = torch.zeros((), device=self.device)
        for chosen in bucketed(examples.lengths[self.train], self.job.batch_size, generator):
            columns, labels = self._columns("train", self.train[chosen])
            loss = self.model.reader.loss(self.model(columns), labels)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, self.job.clip)
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach() * len(labels)
        mean = float(total) / len(self.train)
        # The losses do not show what the last step did.
        if not math.isfinite(mean) or not all(bool(p.isfinite().all()) for p in self.parameters):
            what = "parameters are no longer finite" if math.isfinite(mean) else f"loss is {mean}"
            raise GlomoError(
                f"task {self.job.task!r}, arm {self.job.arm!r}, seed {self.job.seed}: the {what} in "
                f"epoch {epoch}. Lower lr (now {self.job.lr:g}) and check the features for large values."
            )
        return mean

    @torch.inference_mode()
    def _measure(self, split: str, weight_sums: list[Tensor] | None = None) -> dict[str, float]:
        """The task's metrics; adds the summed mixture weights of the real units to `weight_sums`."""
        examples = self.splits[split]
        self.modules.eval()
        predictions: np.ndarray[Any, Any] | None = None
        for chosen in by_length(examples.lengths, EVALUATION_BATCH):
            columns, _ = self._columns(split, chosen)
            predicted = self.model.reader.predict(self.model(columns)).cpu().numpy()
            if predictions is None:
                predictions = np.empty((len(examples.labels), *predicted.shape[1:]), predicted.dtype)
            if predicted.shape != (expected := (len(chosen), *predictions.shape[1:])):
                raise ConfigError(
                    f"task {self.task.name!r}: `predict` of its reader gave {list(predicted.shape)} for a batch, "
                    f"expected {list(expected)}: an example has as many predictions in a batch of short ones as in "
                    "any other. Pad them to one length."
                )
            predictions[chosen] = predicted
            if weight_sums is not None and self.store is not None:
                weight_sums += [self._weights(sequences) for sequences in columns.values()]
        assert predictions is not None  # no split is empty
        return _shares(self.task, self.task.measure(self.data.splits[split], predictions))

    def _weights(self, sequences: Sequences) -> Tensor:
        """Mixture weights, summed over the real units if they are conditioned on them: [2, mixtures, C]."""
        weights = self.model.mixture.weights(sequences.units)
        if weights.ndim == 5:  # conditioned: [2, mixtures, N, T, C]
            # not `sequences.real`, to which the padding of an empty text is a unit
            at = torch.arange(sequences.units.shape[1], device=self.device)
            real = at < sequences.lengths[:, None]
            weights = torch.einsum("xmbtc,bt->xmc", weights, real.to(weights.dtype))
        return weights

    def _columns(self, split: str, chosen: np.ndarray[Any, Any]) -> tuple[dict[str, Sequences], Tensor]:
        """Features, lengths and graphs of every column of the examples `chosen`, and their labels."""
        encoded, labels = self.splits[split].batch(chosen)
        columns = {}
        for name, batch in encoded.items():
            column, graphs = section(split, name), None
            if self.store is not None:
                forward, backward = self.store.batch(column, batch.numbers, batch.units.shape[1])
                graphs = forward.to(self.device), backward.to(self.device)
            there = batch.to(self.device)
            columns[name] = Sequences(self.features(column, there), there.lengths, graphs)
        return columns, labels.to(self.device)


def _shares(task: Task, metrics: Any) -> dict[str, float]:
    """What the task's `measure` gave, NumPy's numbers as Python's; ConfigError for what no report could read."""
    if not isinstance(metrics, Mapping) or task.metric not in metrics:
        raise ConfigError(
            f"task {task.name!r}: `measure` must give a dict with the metric {task.metric!r}, got {metrics!r:.80}."
        )
    for name, value in metrics.items():
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise ConfigError(
                f"task {task.name!r}: `measure` must give shares in [0, 1], got {value!r:.80} for {name!r}."
            )
    return {name: float(value) for name, value in metrics.items()}
