"""Train a task model on frozen graphs: `run(job) -> Result`, a plain function of the job."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glomo_dist.graphs.export import require_graph_kernels
from glomo_dist.graphs.index import DIRECTIONS
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.io import read_config
from glomo_dist.runtime import config, kernels
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.fingerprint import code_version, derive_seed
from glomo_dist.runtime.secrets import shown_in
from glomo_dist.transfer.datasets.dataset import Task, TaskData, section
from glomo_dist.transfer.datasets.splits import draw
from glomo_dist.transfer.export import live_graphs, live_model
from glomo_dist.transfer.features.inputs import Inputs, bucketed, by_length, encode
from glomo_dist.transfer.job import FinetuneJob, window_size
from glomo_dist.transfer.readers.head import Fusion, GraphMixture
from glomo_dist.transfer.readers.models import Mix, ReaderSizes, TaskModel
from glomo_dist.transfer.readers.sequences import Sequences
from glomo_dist.transfer.registry import get_task
from glomo_dist.transfer.result import FORMAT, VERSION, Epoch, MixedGraph, Result

EVALUATION_BATCH = 128  # examples; memory stays small, and dropout-free passes need no more


def require_kernels(job: FinetuneJob) -> None:
    """ConfigError where GLOMO_KERNELS names a backend that cannot run here what the job needs."""
    if job.needs_graphs:
        kernels.require("graph_mix", torch.empty(1, 1, 1))
        if model := live_model(job.graphs):
            require_graph_kernels(read_config(model))


def demands_of_data(job: FinetuneJob) -> bool:
    """Whether `require_fit` may refuse the job: it has a graph store, or says how many examples it wants."""
    return job.train_size is not None or (job.graphs is not None and live_model(job.graphs) is None)


def require_fit(job: FinetuneJob, task: Task, data: TaskData) -> GraphStore | None:
    """The graph store of the job, if it has one.

    Raises GraphStoreError if its graphs are of other data, or of texts cut to another length, and ConfigError for a
    `train_size` that the data do not have.
    """
    job.require_examples(len(data.splits["train"].labels))
    if job.graphs is None or live_model(job.graphs):
        return None
    store = GraphStore.open(job.graphs)
    store.check(task.name, task.version, data.fingerprint, task.limits(job.max_units))
    for name, split in data.splits.items():
        for column, inputs in split.columns.items():
            store.check_split(section(name, column), len(inputs.values))
    return store


def run(job: FinetuneJob) -> Result:
    """Train on the task, stop early on dev, report test at the best dev epoch.

    A pure function of the job and the files it names, for a given number of threads; the arms of one seed
    see the same examples in the same order from the same initial parameters. Raises GlomoError for anything
    wrong with the job or its files.
    """
    began = time.perf_counter()
    if not isinstance(job, FinetuneJob):
        raise ConfigError(f"finetune.run takes a FinetuneJob, got {type(job).__name__}.")
    require_kernels(job)
    task = get_task(job.task, job.task_file)
    limits = task.limits(job.max_units)
    data = task.load(job.task_source, job.max_examples)
    store = require_fit(job, task, data)
    model_at = live_model(job.graphs)
    if model_at and job.needs_graphs:
        store = live_graphs(task, model_at, data, limits, job.keep)
    info = store.info if store else None
    mixed = info if job.needs_graphs else None
    # The arms without graphs only take the size of the mixture, which a model's configuration has.
    sized = info or (read_config(model_at) if model_at else None)
    size = (sized.layers, sized.heads) if sized else (1, 1)
    with _torch_state(job.seed, job.threads):
        inputs = encode(data, task.unit, job.features, limits, job.hidden, job.reader, job.state_cache)
        model = build(job, task, inputs, len(data.classes), size)
        training = _Training(job, task, data, inputs, model, store if job.needs_graphs else None)
        curve, best = training.fit(began)
        metrics, mixtures = training.test()
    return Result(
        format=FORMAT,
        version=VERSION,
        job=shown_in(config.to_dict(job)),
        task=task.name,
        task_version=task.version,
        arm=job.arm,
        seed=job.seed,
        metric=task.metric,
        test=metrics[task.metric],
        metrics=metrics,
        dev=curve[best].dev,
        best_epoch=curve[best].epoch,
        curve=tuple(curve),
        seconds=time.perf_counter() - began,
        majority=_majority(data) if task.metric == "accuracy" else None,
        classes=data.classes,
        examples={**{name: len(e.labels) for name, e in inputs.splits.items()}, "train": len(training.train)},
        skipped=data.skipped,
        parameters=sum(p.numel() for p in training.parameters),
        components=tuple(mixed.component_names()) if mixed else (),
        mixtures=mixtures,
        fingerprints={
            "data": data.fingerprint,
            "features": inputs.fingerprint,
            "graphs": info.fingerprint if info else None,
            "model": mixed.model if mixed else None,
        },
        code=code_version(),
        without_vector=inputs.without_vector,
        unknown_to_predictor=mixed.unknown_words if mixed else None,
    )


def build(job: FinetuneJob, task: Task, inputs: Inputs, classes: int, size: tuple[int, int]) -> TaskModel:
    """The task model of `job`.  size: layers and heads of the graphs that the mixture is for."""
    layers, heads = size
    mix: Mix = "graphs" if job.needs_graphs else "none" if job.arm == "none" else "window"
    mixture = GraphMixture(inputs.width, layers, heads, job.mixtures, job.conditioned, job.mixture_scale)
    fusion = Fusion(job.fusion, inputs.width, 2 * job.mixtures)
    reader = task.model(
        ReaderSizes(fusion.out, job.hidden, classes, job.dropout, job.reader, inputs.shape, inputs.width)
    )
    return TaskModel(mix, mixture, fusion, reader, job.dropout, window_size(job.arm))


class _Training:
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
        self.splits, self.features = inputs.splits, inputs.features
        available = len(self.splits["train"].labels)
        self.train = np.array(draw(available, job.train_size, "train subset", job.seed), np.int64)
        self.modules = nn.ModuleList([self.features, model])
        self.parameters = list(self.modules.parameters())
        mixture = list(model.mixture.parameters())
        others = [p for p in self.parameters if all(p is not m for m in mixture)]
        groups = [{"params": others}, {"params": mixture, "lr": job.lr * job.mixture_lr_factor}]
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
        total = torch.zeros(())
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
            predicted = self.model.reader.predict(self.model(columns)).numpy()
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
        return _shares(self.task, self.task.measure(self.data.splits[split], predictions))

    def _weights(self, sequences: Sequences) -> Tensor:
        """Mixture weights, summed over the real units if they are conditioned on them: [2, mixtures, C]."""
        weights = self.model.mixture.weights(sequences.units)
        if weights.ndim == 5:  # conditioned: [2, mixtures, N, T, C]
            # not `sequences.real`, to which the padding of an empty text is a unit
            real = torch.arange(sequences.units.shape[1]) < sequences.lengths[:, None]
            weights = torch.einsum("xmbtc,bt->xmc", weights, real.to(weights.dtype))
        return weights

    def _columns(self, split: str, chosen: np.ndarray[Any, Any]) -> tuple[dict[str, Sequences], Tensor]:
        """Features, lengths and graphs of every column of the examples `chosen`, and their labels."""
        encoded, labels = self.splits[split].batch(chosen)
        columns = {}
        for name, batch in encoded.items():
            column, graphs = section(split, name), None
            if self.store is not None:
                graphs = self.store.batch(column, batch.numbers, batch.units.shape[1])
            columns[name] = Sequences(self.features(column, batch), batch.lengths, graphs)
        return columns, labels


def _shares(task: Task, metrics: Any) -> dict[str, float]:
    """What the task's `measure` gave, NumPy's numbers as Python's; ConfigError for what no report could read."""
    if not isinstance(metrics, Mapping) or task.metric not in metrics:
        raise ConfigError(
            f"task {task.name!r}: `measure` must give a dict with the metric {task.metric!r}, got {metrics!r:.80}."
        )
    for name, value in metrics.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ConfigError(
                f"task {task.name!r}: `measure` must give shares in [0, 1], got {value!r:.80} for {name!r}."
            )
    return {name: float(value) for name, value in metrics.items()}


def _majority(data: TaskData) -> float | None:
    """Share of the most frequent class of test; None where labels are no classes."""
    labels = data.splits["test"].labels
    if labels.ndim > 1:
        return None
    return float(np.bincount(labels).max() / len(labels))


@contextlib.contextmanager
def _torch_state(seed: int, threads: int) -> Iterator[None]:
    """Torch's random state and thread count for the block, put back afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("finetune", seed))
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
