"""The graphs of a task: load it, encode its units for a predictor, write the graph store or compute them live."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.data.pixels import PixelTokenizer
from glomo_dist.data.tokenizer import load_tokenizer
from glomo_dist.graphs.export import (
    BATCH_UNITS,
    ExportNumbers,
    export_graphs,
    require_graph_kernels,
)
from glomo_dist.graphs.index import StoreMeta
from glomo_dist.graphs.live import LiveGraphs
from glomo_dist.model.io import load_model, random_model
from glomo_dist.model.io import model_folder as find_model
from glomo_dist.runtime.config import check_least
from glomo_dist.runtime.errors import CheckpointError, ConfigError, DataError
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.progress import say
from glomo_dist.transfer.coverage import MANY, percent, unknown
from glomo_dist.transfer.dataset import Task, TaskData, left_out, section
from glomo_dist.transfer.inputs import truncate
from glomo_dist.transfer.task import find_task


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
) -> Path:
    """Write the graphs of all splits of a task, as a predictor sees them, to the store `out`.

    task_name: or the path of a .py file with a task of your own.
    model_folder: a model with its tokenizer.json, or a finished run; words that tokenizer does not know become <unk>.
    random_seed: not None for the *random predictor* baseline, a predictor of the same configuration with
        fresh parameters.
    source, max_units, max_examples: as in FinetuneJob; they must be the same there.
    """
    numbers = _Numbers(keep, batch_units, random_seed, max_units, max_examples)
    task, _ = find_task(task_name)
    limits = task.limits(numbers.max_units)
    predictor = _Predictor(model_folder, task, numbers.random_seed)
    require_graph_kernels(predictor.model.config)
    data = task.load(None if source is None else str(source), numbers.max_examples)
    units = predictor.encode(data, limits)
    meta = predictor.meta(task, data, limits, units)
    store = export_graphs(
        predictor.model, units, out, meta=meta, keep=numbers.keep, batch_units=numbers.batch_units
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
        if self.random_seed is not None and not -(2**63) <= self.random_seed < 2**64:  # those of torch
            raise ConfigError(
                f"export: random_seed must be from -2**63 to 2**64 - 1, got {self.random_seed}."
            )


def live_model(graphs: str | None) -> Path | None:
    """Folder of the model that is to compute the graphs of a job; None where they are in a store, or there are none.

    graphs: as the job names them.
    """
    return None if graphs is None else find_model(graphs)


def live_graphs(
    task: Task, model_folder: str | Path, data: TaskData, limits: dict[str, int | None], keep: int | None
) -> LiveGraphs:
    """The graphs of all splits of a task, computed when they are asked for: the same numbers as a store's."""
    predictor = _Predictor(model_folder, task, None)
    units = predictor.encode(data, limits)
    meta = predictor.meta(task, data, limits, units)
    return LiveGraphs(predictor.model, units, meta=meta, keep=keep, folder=Path(model_folder))


def _report(task: str, meta: StoreMeta, data: TaskData) -> None:
    if meta.unknown_words is not None:
        warning = "WARNING: export: " if meta.unknown_words > MANY else ""
        words = f"{percent(meta.unknown_words)} of the words of task {task!r}"
        say(f"{warning}{words} are not in the predictor's vocabulary")
    if data.skipped:
        say(f"task {task!r}: {left_out(data.skipped)}")


class _Predictor:
    """A model with its tokenizer; ConfigError or CheckpointError if they do not fit the task or each other."""

    def __init__(self, model_folder: str | Path, task: Task, random_seed: int | None) -> None:
        model_folder = find_model(model_folder) or model_folder
        self.folder, self.random_seed = model_folder, random_seed
        self.model, meta = load_model(model_folder)
        self.tokenizer = load_tokenizer(model_folder)
        if self.tokenizer.kind != task.unit:
            raise ConfigError(
                f"task {task.name!r} has {task.unit} as units, the model in {model_folder} was trained on "
                f"{self.tokenizer.kind}. Use a model for {task.unit}."
            )
        if self.tokenizer.vocab_size != self.model.config.vocab_size:
            raise CheckpointError(
                f"{model_folder}: tokenizer.json has {self.tokenizer.vocab_size} units, the model was trained with "
                f"{self.model.config.vocab_size}. Put back the tokenizer it was trained with."
            )
        if meta.get("tokenizer") not in (None, self.tokenizer.fingerprint):
            raise CheckpointError(
                f"{model_folder}: tokenizer.json has as many units as the model's, but is another. Put back the "
                "tokenizer it was trained with."
            )
        if isinstance(self.tokenizer, PixelTokenizer):
            _require_image(self.model.config.image, self.tokenizer.shape, model_folder)
        self.fingerprint = str(meta["fingerprint"])
        if random_seed is not None:
            self.model = random_model(model_folder, random_seed)
            self.fingerprint = fingerprint(["random predictor", meta["model"], random_seed])

    def encode(self, data: TaskData, limits: dict[str, int | None]) -> dict[str, list[np.ndarray[Any, Any]]]:
        """The ids of all inputs; ConfigError for images that are not of the size of those the model knows."""
        if isinstance(self.tokenizer, PixelTokenizer):
            columns = (column for split in data.splits.values() for column in split.columns.values())
            _require_size(self.tokenizer, (image for column in columns for image in column.values))
        return {
            section(name, column): [self.tokenizer.encode(value) for value in values]
            for name, split in data.splits.items()
            for column, values in truncate(split, limits).items()
        }

    def meta(
        self,
        task: Task,
        data: TaskData,
        limits: dict[str, int | None],
        units: dict[str, list[np.ndarray[Any, Any]]],
    ) -> StoreMeta:
        """units: what `encode` gave. DataError where the predictor knows none of the task's words."""
        words = None
        if self.tokenizer.kind == "words":
            known = np.arange(self.tokenizer.vocab_size) != 0  # 0 is <unk>
            words = unknown((ids for texts in units.values() for ids in texts), known).words
            if words == 1:
                raise DataError(
                    f"task {task.name!r}: none of its words is in the vocabulary of the predictor in {self.folder}, "
                    "whose graphs would say nothing. Use a predictor of the same language and spelling."
                )
        return StoreMeta(
            task=task.name,
            task_version=task.version,
            data=data.fingerprint,
            model=self.fingerprint,
            tokenizer=self.tokenizer.fingerprint,
            max_units=limits,
            unknown_words=words,
            predictor="trained" if self.random_seed is None else "random",
            random_seed=self.random_seed,
        )


def _require_image(image: tuple[int, int] | None, shape: tuple[int, int], folder: str | Path) -> None:
    if image is not None and image != shape:
        theirs, ours = (" x ".join(map(str, size)) for size in (image, shape))
        raise CheckpointError(
            f"{folder}: tokenizer.json is of {ours} images, the model of {theirs} (height x width). Put back the "
            "tokenizer it was trained with."
        )


def _require_size(tokenizer: PixelTokenizer, images: Iterable[np.ndarray[Any, Any]]) -> None:
    size = (*tokenizer.shape, tokenizer.channels)
    for image in images:
        got = image.shape if image.ndim == 3 else (*image.shape, 1)
        if got != size:
            theirs, ours = (" x ".join(map(str, shape)) for shape in (size, got))
            raise ConfigError(
                f"the model was pretrained on {theirs} images (height x width x channels), the task's are {ours}. "
                f"Pretrain on such images (glomo prepare images --size {got[0]} {got[1]} --channels {got[2]})."
            )
