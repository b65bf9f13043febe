"""A task's examples as arrays that are cheap to batch: encoded once, features by one table look-up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glomo_dist.runtime.devices import Device
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.datasets.checks import require_shape
from glomo_dist.transfer.datasets.dataset import Split, TaskData, section
from glomo_dist.transfer.features.coverage import Unknown, unknown
from glomo_dist.transfer.features.encoder_files import encoder_fingerprint
from glomo_dist.transfer.features.modules import (
    UNKNOWN,
    ColumnBatch,
    Features,
    PixelFeatures,
    RecurrentFeatures,
    StateFeatures,
    WordFeatures,
)
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.features.states import column_states
from glomo_dist.transfer.features.word_vectors import WordVectors, table_fingerprint
from glomo_dist.transfer.readers.kinds import Cell

_POOL = 32  # batches


@dataclass(frozen=True)
class EncodedColumn:
    """A `Column`, encoded: the units of value v are flat[starts[v] : starts[v + 1]].

    flat: word ids int32 [units], or pixels uint8 [units, channels].  of: as in `Column`.
    """

    flat: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    of: np.ndarray[Any, Any]

    def batch(self, indices: np.ndarray[Any, Any]) -> ColumnBatch:
        """The values of the examples `indices`, int64 [B]: units int64 [B · k, T], of pixels uint8
        [B · k, T, channels], padded with 0, where T is the longest of them and at least 1."""
        numbers = self.of[indices].reshape(-1)
        first, lengths = self.starts[numbers], self.starts[numbers + 1] - self.starts[numbers]
        T = int(lengths.max(initial=1))
        dtype = np.int64 if self.flat.ndim == 1 else np.uint8
        units = np.zeros((len(numbers), T, *self.flat.shape[1:]), dtype)
        if len(numbers):
            parts = [self.flat[a : a + n] for a, n in zip(first.tolist(), lengths.tolist(), strict=True)]
            units[np.arange(T) < lengths[:, None]] = np.concatenate(parts)
        return ColumnBatch(numbers, torch.from_numpy(units), torch.from_numpy(lengths))


@dataclass(frozen=True)
class Examples:
    """Encoded examples of one split."""

    columns: dict[str, EncodedColumn]
    labels: np.ndarray[Any, Any]

    @cached_property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Units of each example, all columns together: int64 [examples]."""
        return sum(
            (np.diff(c.starts)[c.of].sum(1) for c in self.columns.values()),
            np.zeros(len(self.labels), np.int64),
        )

    def batch(self, indices: np.ndarray[Any, Any]) -> tuple[dict[str, ColumnBatch], Tensor]:
        """The columns of the examples `indices`, and their labels int64 [B]."""
        columns = {name: column.batch(indices) for name, column in self.columns.items()}
        return columns, torch.from_numpy(self.labels[indices])


@dataclass(frozen=True)
class Inputs:
    """Encoded splits, what turns units into features, and the features' width and fingerprint.

    without_vector: the words without one, where the features are word vectors.
    """

    splits: dict[str, Examples]
    features: Features
    width: int
    shape: tuple[int, int] | None
    fingerprint: str | None
    without_vector: Unknown | None = None


def truncate(split: Split, limits: dict[str, int | None]) -> dict[str, list[Any]]:
    """The values of every column, texts cut to their first `limits[column]` units.

    Raises ConfigError if the examples have other columns than their task.
    """
    if set(split.columns) != set(limits):
        raise ConfigError(
            f"the examples have the columns {', '.join(split.columns)}, their task {', '.join(limits)}. `load` and "
            "`columns` of a task must name the same."
        )
    return {
        name: column.values if limits[name] is None else [value[: limits[name]] for value in column.values]
        for name, column in split.columns.items()
    }


def encode(
    data: TaskData,
    unit: str,
    features: str,
    limits: dict[str, int | None],
    hidden: int,
    cell: Cell = "gru",
    state_cache: str | None = None,
    device: Device = "cpu",
) -> Inputs:
    """Encode all splits for the feature spec `features` (see spec.py).

    hidden: the width of learned vectors without one, and of each direction of a recurrent layer, which has `cell`.
    state_cache: where the states of an encoder are kept (see states.py).  device: where it computes them.
    """
    spec = FeatureSpec.parse(features)
    if unit == "pixels":
        if spec.kind != "pixels":
            raise ConfigError(f"features {features!r}: a task on pixels has the features 'pixels' only.")
        return _pixels(data)
    if spec.kind == "pixels":
        raise ConfigError(
            "features 'pixels': this task's units are words; use 'learned', a file of word vectors or an encoder."
        )
    texts = {name: truncate(split, limits) for name, split in data.splits.items()}
    ids, module, width, content, has_vector = _words(spec, texts, hidden, state_cache, device)
    splits = {
        name: Examples(
            {c: _encode_words(values, split.columns[c].of, ids) for c, values in texts[name].items()},
            split.labels,
        )
        for name, split in data.splits.items()
    }
    if spec.recurrent:
        module, width = RecurrentFeatures(module, cell, width, hidden), 2 * hidden
    columns = (column.flat for examples in splits.values() for column in examples.columns.values())
    without_vector = None if has_vector is None else unknown(columns, has_vector)
    return Inputs(splits, module, width, None, content, without_vector)


class _Words(NamedTuple):
    """The number of each word, what turns numbers into features, their width, and the fingerprint of frozen ones.

    has_vector: bool by number, None where the features are no vectors from a file.
    """

    ids: dict[str, int]
    module: Features
    width: int
    content: str | None = None
    has_vector: np.ndarray[Any, Any] | None = None


def _words(
    spec: FeatureSpec,
    texts: dict[str, dict[str, list[list[str]]]],
    hidden: int,
    state_cache: str | None,
    device: Device,
) -> _Words:
    if spec.kind == "states":
        columns = {section(s, c): values for s, split in texts.items() for c, values in split.items()}
        content = encoder_fingerprint(spec)
        states = column_states(spec, content, columns, state_cache, device)
        return _Words({}, StateFeatures(states), next(iter(states.values())).width, content)
    # Learned embeddings know the words of train; vectors from a file may cover those of the other splits too.
    known = ("train",) if spec.kind == "learned" else tuple(texts)
    vocabulary = sorted(
        {word for name in known for values in texts[name].values() for words in values for word in words}
    )
    ids = {word: i for i, word in enumerate(vocabulary, UNKNOWN + 1)}
    if spec.kind == "learned":
        width = spec.width or hidden
        return _Words(ids, WordFeatures(len(ids) + 2, width, None), width)
    vectors = WordVectors.load(spec.source, only=ids)
    of_none = np.zeros((UNKNOWN + 1, vectors.width), np.float32)  # padding, unknown words
    table = np.concatenate([of_none, vectors.table(vocabulary)])
    has_vector = np.array([*[False] * len(of_none), *(word in vectors.words for word in vocabulary)])
    features = WordFeatures(len(ids) + 2, vectors.width, table)
    return _Words(ids, features, vectors.width, table_fingerprint(table), has_vector)


def _encode_words(texts: list[list[str]], of: np.ndarray[Any, Any], ids: dict[str, int]) -> EncodedColumn:
    starts = np.cumsum([0] + [len(words) for words in texts], dtype=np.int64)
    stream: Iterator[int] = (ids.get(word, UNKNOWN) for words in texts for word in words)
    return EncodedColumn(np.fromiter(stream, np.int32, int(starts[-1])), starts, of)


def _pixels(data: TaskData) -> Inputs:
    shape = next(iter(data.splits["train"].columns.values())).values[0].shape
    pixels = shape[0] * shape[1]
    splits = {}
    for name, split in data.splits.items():
        columns = {}
        for key, column in split.columns.items():
            for number, image in enumerate(column.values):
                require_shape(image, shape, f"{name} {key} {number}")
            stacked = np.stack(column.values).reshape(len(column.values) * pixels, -1)
            columns[key] = EncodedColumn(stacked, np.arange(len(column.values) + 1) * pixels, column.of)
        splits[name] = Examples(columns, split.labels)
    channels = shape[2] if len(shape) == 3 else 1
    return Inputs(splits, PixelFeatures(shape[:2]), channels + 2, shape[:2], None)


def bucketed(
    lengths: np.ndarray[Any, Any], batch_size: int, generator: np.random.Generator
) -> list[np.ndarray[Any, Any]]:
    """A random order of all examples as batches of similar length: sorted within pools of _POOL batches.

    lengths: int64 [examples].  -> numbers of examples, int64 [batch_size] each, the last of a pool perhaps fewer.
    """
    order, pool = generator.permutation(len(lengths)), _POOL * batch_size
    batches = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def by_length(lengths: np.ndarray[Any, Any], batch_size: int) -> list[np.ndarray[Any, Any]]:
    """All examples once, shortest first, as batches (for evaluation: no padding to speak of)."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
