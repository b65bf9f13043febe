"""What a frozen predictor sees in encoded examples, as the arrays of a chunk (see graphs/store.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from glomo_kernels import SparseGraph
from torch import nn

from glomo_dist.graphs.chunks import Arrays
from glomo_dist.graphs.index import DIRECTIONS
from glomo_dist.model.glomo import Glomo
from glomo_dist.runtime.errors import CheckpointError, DataError

BATCH_UNITS = 1 << 14  # padded, of a forward pass


def check_ids(model: Glomo, splits: dict[str, list[np.ndarray[Any, Any]]], asking: str) -> None:
    """Raise CheckpointError or DataError for ids or images that are not the model's.  asking: named in the error."""
    vocabulary = model.config.vocab_size
    for name, examples in splits.items():
        for number, ids in enumerate(examples):
            if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
                raise CheckpointError(
                    f"{asking}: {name} example {number} has unit ids {int(ids.min())}..{int(ids.max())}, "
                    f"the model's vocabulary is 0..{vocabulary - 1}. Use the tokenizer it was trained with."
                )
            if model.config.image and len(ids) != model.config.image[0] * model.config.image[1]:
                raise DataError(
                    f"{asking}: {name} example {number} has {len(ids)} pixels, the model is for images of "
                    f"{model.config.image[0]} x {model.config.image[1]}."
                )


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@torch.inference_mode()
def predict_chunk(
    model: Glomo,
    examples: Sequence[np.ndarray[Any, Any]],
    keep: int | None,
    batch_units: int,
    done: Callable[[int], object],
) -> Arrays:
    """The arrays of one chunk, computed in batches of similar length where the model is; `done` is told the units of
    each."""
    device = device_of(model)
    lengths = np.array([len(e) for e in examples], np.int64)
    rows: dict[str, list[Any]] = {d: [_no_edges()] * len(examples) for d in DIRECTIONS}
    order = [i for i in np.argsort(-lengths, kind="stable").tolist() if lengths[i] > 0]
    at = 0
    while at < len(order):
        T = int(lengths[order[at]])
        batch = order[at : at + max(1, batch_units // T)]
        at += len(batch)
        tokens = np.zeros((len(batch), T), np.int64)
        for b, i in enumerate(batch):
            tokens[b, : lengths[i]] = examples[i]
        n = lengths[batch]
        most = keep and min(keep, T)  # any number is meant, the kernels take those of 64 bits
        of_tokens, of_lengths = (torch.from_numpy(x).to(device) for x in (tokens, n))
        for direction, graph in zip(DIRECTIONS, model.graphs(of_tokens, of_lengths, keep=most), strict=True):
            for i, example in zip(batch, _split(graph.to("cpu"), n), strict=True):
                rows[direction][i] = example
        done(int(n.sum()))
    arrays: Arrays = {"units": lengths}
    narrow = lengths.max(initial=0) <= np.iinfo(np.int16).max
    for direction in DIRECTIONS:
        counts, columns, weights = zip(*rows[direction], strict=True)
        small = keep is not None and keep <= np.iinfo(np.uint8).max
        arrays[f"{direction}.counts"] = np.concatenate(
            counts, dtype=np.uint8 if small else np.int32, casting="unsafe"
        )
        arrays[f"{direction}.columns"] = np.concatenate(
            columns, dtype=np.int16 if narrow else np.int32, casting="unsafe"
        )
        arrays[f"{direction}.weights"] = np.concatenate(weights)
        arrays[f"{direction}.edges"] = np.cumsum([0] + [len(c) for c in columns], dtype=np.int64)
    return arrays


def _no_edges() -> tuple[np.ndarray[Any, Any], ...]:
    return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float16)


def _split(graph: SparseGraph, lengths: np.ndarray[Any, Any]) -> list[tuple[np.ndarray[Any, Any], ...]]:
    """Per example: row counts [C·n], columns and float16 weights of its edges (not those rounded to 0)."""
    B, C, T = graph.shape
    weights = graph.weights.numpy().astype(np.float16)
    columns = graph.columns.numpy()
    offsets = graph.offsets.numpy()
    live = weights > 0
    if not live.all():
        offsets = np.concatenate([[0], np.cumsum(live)])[offsets]
        weights, columns = weights[live], columns[live]
    counts = np.diff(offsets).reshape(B, C, T)
    bounds = offsets[:: C * T]
    return [
        (
            counts[b, :, :n].reshape(-1).astype(np.int32),
            columns[bounds[b] : bounds[b + 1]].copy(),
            weights[bounds[b] : bounds[b + 1]].copy(),
        )
        for b, n in enumerate(lengths.tolist())
    ]
