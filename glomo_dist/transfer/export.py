"""The graphs of a task: load it, encode its units for a predictor, write the graph store or compute them live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.graphs.export import ExportNumbers, export_graphs, require_graph_kernels
from glomo_dist.graphs.index import StoreMeta
from glomo_dist.graphs.live import LiveGraphs
from glomo_dist.graphs.predict import BATCH_UNITS
from glomo_dist.model.io import model_folder as find_model
from glomo_dist.runtime.config import check_least
from glomo_dist.runtime.devices import Device, require_device
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.paths import output
from glomo_dist.runtime.progress import say
from glomo_dist.transfer.datasets.dataset import Task, TaskData, left_out, section
from glomo_dist.transfer.features.coverage import MANY, percent, unknown
from glomo_dist.transfer.features.inputs import truncate
from glomo_dist.transfer.predictor import Predictor, require_seed
from glomo_dist.transfer.registry import find_task


def export_task(
    task_name: str | Path,
    model_folder: str | Path,
    out: str | Path,
    *,
    source: str | Path | None = None,
    random_seed: int | None = None,
    keep: int | None = 8,
    max_units: int | None = None,
    max_examples: int | None = None,
    batch_units: int = BATCH_UNITS,
    device: Device = "cpu",
) -> Path:
    """Write the graphs of all splits of a task, as a predictor sees them, to the store `out`.

    task_name: or the path of a .py file with a task of your own.
    model_folder: a model with its tokenizer.json, or a finished run; words that tokenizer does not know become <unk>.
    random_seed: not None for the *random predictor* baseline, a predictor of the same configuration with
        fresh parameters.
    source, max_units, max_examples: as in FinetuneJob; they must be the same there.
    device: where the predictor computes; a graph may have an edge more or less where a score is that near theta.
    """
    out = output(out)
    require_device(device)
    numbers = _Numbers(keep, batch_units, random_seed, max_units, max_examples)
    task, _ = find_task(task_name)
    limits = task.limits(numbers.max_units)
    predictor = Predictor(model_folder, numbers.random_seed, task)
    require_graph_kernels(predictor.model.config, device)
    data = task.data(None if source is None else str(source), numbers.max_examples)
    units = _encode(predictor, data, limits)
    meta = _meta(predictor, task, data, limits, units)
    store = export_graphs(
        predictor.model.to(device), units, out, meta=meta, keep=numbers.keep, batch_units=numbers.batch_units
    )
    _report(task.name, meta, data)
    return store


@dataclass(frozen=True)
class _Numbers(ExportNumbers):
    """All those of a task's export, refused before anything is read."""

    random_seed: int | None
    max_units: int | None
    max_examples: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "export: ", 1, "max_units", "max_examples")
        require_seed(self.random_seed, "export: ")


def live_model(graphs: str | None) -> Path | None:
    """Folder of the model that is to compute the graphs of a job; None where they are in a store, or there are none.

    graphs: as the job names them.
    """
    return None if graphs is None else find_model(graphs)


def live_graphs(
    task: Task,
    model_folder: str | Path,
    data: TaskData,
    limits: dict[str, int | None],
    keep: int | None,
    device: Device = "cpu",
) -> LiveGraphs:
    """The graphs of all splits of a task, computed when they are asked for: the same numbers as a store's."""
    predictor = Predictor(model_folder, task=task)
    units = _encode(predictor, data, limits)
    meta = _meta(predictor, task, data, limits, units)
    return LiveGraphs(predictor.model.to(device), units, meta=meta, keep=keep, folder=Path(model_folder))


def _report(task: str, meta: StoreMeta, data: TaskData) -> None:
    if meta.unknown_words is not None:
        warning = "WARNING: export: " if meta.unknown_words > MANY else ""
        words = f"{percent(meta.unknown_words)} of the words of task {task!r}"
        say(f"{warning}{words} are not in the predictor's vocabulary")
    if data.skipped:
        say(f"task {task!r}: {left_out(data.skipped)}")


def _encode(
    predictor: Predictor, data: TaskData, limits: dict[str, int | None]
) -> dict[str, list[np.ndarray[Any, Any]]]:
    """The ids of all inputs; ConfigError for images that are not of the size of those the model knows."""
    if predictor.tokenizer.kind == "pixels":
        columns = (column for split in data.splits.values() for column in split.columns.values())
        predictor.require_size(image for column in columns for image in column.values)
    return {
        section(name, column): [predictor.tokenizer.encode(value) for value in values]
        for name, split in data.splits.items()
        for column, values in truncate(split, limits).items()
    }


def _meta(
    predictor: Predictor,
    task: Task,
    data: TaskData,
    limits: dict[str, int | None],
    units: dict[str, list[np.ndarray[Any, Any]]],
) -> StoreMeta:
    """units: what `_encode` gave. DataError where the predictor knows none of the task's words."""
    words = None
    if predictor.tokenizer.kind == "words":
        known = np.arange(predictor.tokenizer.vocab_size) != 0  # 0 is <unk>
        words = unknown((ids for texts in units.values() for ids in texts), known).words
        if words == 1:
            raise DataError(
                f"task {task.name!r}: none of its words is in the vocabulary of the predictor in {predictor.folder}, "
                "whose graphs would say nothing. Use a predictor of the same language and spelling."
            )
    return StoreMeta(
        task=task.name,
        task_version=task.version,
        data=data.fingerprint,
        model=predictor.fingerprint,
        tokenizer=predictor.tokenizer.fingerprint,
        max_units=limits,
        unknown_words=words,
        predictor="trained" if predictor.random_seed is None else "random",
        random_seed=predictor.random_seed,
    )
