"""The graphs of a task: load it, encode its units for a predictor, write the graph store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.data.tokenizer import load_tokenizer
from glomo_dist.graphs.export import StoreMeta, export_graphs
from glomo_dist.model.io import load_model, random_model
from glomo_dist.runtime.errors import CheckpointError, ConfigError
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.transfer.dataset import section
from glomo_dist.transfer.inputs import truncate
from glomo_dist.transfer.task import get_task


def export_task(
    task_name: str,
    model_folder: str | Path,
    out: str | Path,
    *,
    source: str | None = None,
    random_seed: int | None = None,
    keep: int | None = 8,
    max_units: int | None = None,
    max_examples: int | None = None,
    batch_tokens: int = 16384,
) -> Path:
    """Write the graphs of all splits of a task, as a predictor sees them, to the store `out`.

    model_folder: a model with its tokenizer.json; words that tokenizer does not know become <unk>.
    random_seed: not None for the *random predictor* baseline, a predictor of the same configuration with
        fresh parameters.
    source, max_units, max_examples: as in FinetuneJob; they must be the same there.
    """
    task = get_task(task_name)
    limits = task.limits(max_units)
    tokenizer = load_tokenizer(model_folder)
    if tokenizer.kind != task.unit:
        raise ConfigError(
            f"task {task.name!r} has {task.unit} as units, the model in {model_folder} was trained on "
            f"{tokenizer.kind}. Use a model for {task.unit}."
        )
    model, meta = load_model(model_folder)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise CheckpointError(
            f"{model_folder}: tokenizer.json has {tokenizer.vocab_size} units, the model was trained with "
            f"{model.config.vocab_size}. Put back the tokenizer it was trained with."
        )
    model_fingerprint = str(meta["fingerprint"])
    if random_seed is not None:
        model = random_model(model_folder, random_seed)
        model_fingerprint = fingerprint(["random predictor", meta["model"], random_seed])
    data = task.load(source, max_examples)
    sections: dict[str, list[np.ndarray[Any, Any]]] = {
        section(name, column): [tokenizer.encode(value) for value in values]
        for name, split in data.splits.items()
        for column, values in truncate(split, limits).items()
    }
    return export_graphs(
        model,
        sections,
        out,
        meta=StoreMeta(
            task.name, task.version, data.fingerprint, model_fingerprint, tokenizer.fingerprint, limits
        ),
        keep=keep,
        batch_tokens=batch_tokens,
    )
