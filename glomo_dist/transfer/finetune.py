"""Train a task model on frozen graphs: `run(job) -> Result`, a plain function of the job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import torch

from glomo_dist.graphs.export import require_graph_kernels
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.io import read_config
from glomo_dist.runtime import config, kernels
from glomo_dist.runtime.devices import in_float32, require_device
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.fingerprint import code_version, derive_seed
from glomo_dist.runtime.secrets import shown_in
from glomo_dist.transfer.datasets.dataset import Task, TaskData, section
from glomo_dist.transfer.export import live_graphs, live_model
from glomo_dist.transfer.features.inputs import Inputs, encode
from glomo_dist.transfer.job import FinetuneJob, window_size
from glomo_dist.transfer.readers.head import Fusion, GraphMixture
from glomo_dist.transfer.readers.models import Mix, ReaderSizes, TaskModel
from glomo_dist.transfer.registry import file_content, get_task
from glomo_dist.transfer.result import FORMAT, VERSION, Result
from glomo_dist.transfer.training import Training


def require_kernels(job: FinetuneJob) -> None:
    """ConfigError where the job's device is missing, or GLOMO_KERNELS names a backend that cannot run there what the
    job needs."""
    require_device(job.device)
    # Not to make a tensor for nothing: the first one on a GPU takes memory for as long as the process lives.
    if job.needs_graphs and kernels.is_forced():
        kernels.require("graph_mix", torch.empty(1, 1, 1, device=job.device))
        if model := live_model(job.graphs):
            require_graph_kernels(read_config(model), job.device)


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

    A pure function of the job and the files it names, for a given number of threads (on a GPU up to rounding: its
    libraries add up in any order); the arms of one seed see the same examples in the same order from the same initial
    parameters. Raises GlomoError for anything wrong with the job or its files.
    """
    began = time.perf_counter()
    if not isinstance(job, FinetuneJob):
        raise ConfigError(f"finetune.run takes a FinetuneJob, got {type(job).__name__}.")
    require_kernels(job)
    task, of_file = get_task(job.task, job.task_file), file_content(job.task_file)
    limits = task.limits(job.max_units)
    data = task.data(job.task_source, job.max_examples)
    store = require_fit(job, task, data)
    model_at = live_model(job.graphs)
    if model_at and job.needs_graphs:
        store = live_graphs(task, model_at, data, limits, job.keep, job.device)
    info = store.info if store else None
    mixed = info if job.needs_graphs else None
    # The arms without graphs only take the size of the mixture, which a model's configuration has.
    sized = info or (read_config(model_at) if model_at else None)
    size = (sized.layers, sized.heads) if sized else (1, 1)
    with _torch_state(job):
        inputs = encode(
            data, task.unit, job.features, limits, job.hidden, job.reader, job.state_cache, job.device
        )
        model = build(job, task, inputs, len(data.classes), size)
        training = Training(job, task, data, inputs, model, store if job.needs_graphs else None)
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
            "task_file": of_file,
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


def _majority(data: TaskData) -> float | None:
    """Share of the most frequent class of test; None where labels are no classes."""
    labels = data.splits["test"].labels
    if labels.ndim > 1:
        return None
    return float(np.bincount(labels).max() / len(labels))


@contextlib.contextmanager
def _torch_state(job: FinetuneJob) -> Iterator[None]:
    """Torch's random state, thread count and precision for the block, put back afterwards."""
    before = torch.get_num_threads()
    devices = [] if job.device == "cpu" else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices=devices), in_float32(job.device):
        torch.manual_seed(derive_seed("finetune", job.seed))
        torch.set_num_threads(job.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
