"""A task's examples as arrays that are cheap to batch: encoded once, features by one table look-up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.transfer.dataset import Split, TaskData
from glomo_dist.transfer.features import (
    WordVectors,
    is_learned,
    learned_width,
    pixel_positions,
    table_fingerprint,
)

PAD, UNKNOWN = 0, 1


class ColumnBatch(NamedTuple):
    """numbers int64 [N] of the column's values, their units [N, T] or [N, T, channels] padded with 0, lengths [N].

    N is k times the number of examples, the values of one example next to each other; T ≥ 1.
    """

    numbers: np.ndarray[Any, Any]
    units: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class EncodedColumn:
    """A `Column`, encoded: the units of value v are flat[starts[v] : starts[v + 1]].

    flat: word ids int32 [units], or pixels uint8 [units, channels].  of: as in `Column`.
    """

    flat: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    of: np.ndarray[Any, Any]

    def batch(self, indices: np.ndarray[Any, Any]) -> ColumnBatch:
        numbers = self.of[indices].reshape(-1)
        first, lengths = self.starts[numbers], self.starts[numbers + 1] - self.starts[numbers]
        T = max(1, int(lengths.max(initial=1)))
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
    """Encoded splits, what turns units into features, and the features' width and fingerprint."""

    splits: dict[str, Examples]
    features: nn.Module
    width: int
    shape: tuple[int, int] | None
    fingerprint: str | None


class WordFeatures(nn.Module):
    """Word ids [B, T] -> vectors [B, T, D], a frozen table or a learned one; padding is zero."""

    def __init__(self, vocabulary: int, width: int, frozen: np.ndarray[Any, Any] | None) -> None:
        super().__init__()
        if frozen is not None:
            self.register_buffer("table", torch.from_numpy(frozen), persistent=False)
        else:
            self.table = nn.Parameter(torch.randn(vocabulary, width) * width**-0.5)

    def forward(self, units: Tensor) -> Tensor:
        found = nn.functional.embedding(units, self.table, padding_idx=PAD)
        return found if not self.table.requires_grad else found * (units != PAD)[..., None]


class PixelFeatures(nn.Module):
    """Pixels uint8 [B, H·W, channels] -> [B, H·W, D]: intensities in [0, 1], position (y, x) in [-1, 1]."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("positions", torch.from_numpy(pixel_positions(*shape)), persistent=False)

    def forward(self, units: Tensor) -> Tensor:
        return torch.cat([units.float() / 255, self.positions.expand(len(units), -1, -1)], -1)


def truncate(split: Split, limits: dict[str, int | None]) -> dict[str, list[Any]]:
    """The values of every column, texts cut to their first `limits[column]` units."""
    return {
        name: column.values if limits[name] is None else [value[: limits[name]] for value in column.values]
        for name, column in split.columns.items()
    }


def encode(data: TaskData, unit: str, features: str, limits: dict[str, int | None], learned: int) -> Inputs:
    """Encode all splits for the feature spec `features` (see features.py); `learned` is its default width."""
    if unit == "pixels":
        if features != "pixels":
            raise ConfigError(f"features {features!r}: a task on pixels has the features 'pixels' only.")
        return _pixels(data)
    if features == "pixels":
        raise ConfigError(
            "features 'pixels': this task's units are words; use 'learned' or a file of word vectors."
        )
    return _words(data, features, limits, learned)


def _words(data: TaskData, features: str, limits: dict[str, int | None], learned: int) -> Inputs:
    texts = {name: truncate(split, limits) for name, split in data.splits.items()}
    # Learned embeddings know the words of train; vectors from a file may cover those of the other splits too.
    known = ("train",) if is_learned(features) else tuple(texts)
    vocabulary = sorted(
        {word for name in known for values in texts[name].values() for words in values for word in words}
    )
    ids = {word: i for i, word in enumerate(vocabulary, UNKNOWN + 1)}
    splits = {
        name: Examples(
            {c: _encode_words(values, split.columns[c].of, ids) for c, values in texts[name].items()},
            split.labels,
        )
        for name, split in data.splits.items()
    }
    if is_learned(features):
        width = learned_width(features, learned)
        return Inputs(splits, WordFeatures(len(ids) + 2, width, None), width, None, None)
    table = WordVectors.load(features, only=ids).table(["", "", *vocabulary])
    table[:2] = 0
    return Inputs(
        splits,
        WordFeatures(len(ids) + 2, table.shape[1], table),
        table.shape[1],
        None,
        table_fingerprint(table),
    )


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
                if image.shape != shape:
                    raise DataError(
                        f"{name} {key} {number} has shape {image.shape}, the first one {shape}. "
                        "Resize them to one size."
                    )
            stacked = np.stack(column.values).reshape(len(column.values) * pixels, -1)
            columns[key] = EncodedColumn(stacked, np.arange(len(column.values) + 1) * pixels, column.of)
        splits[name] = Examples(columns, split.labels)
    channels = shape[2] if len(shape) == 3 else 1
    return Inputs(splits, PixelFeatures(shape[:2]), channels + 2, shape[:2], None)


def bucketed(
    lengths: np.ndarray[Any, Any], batch_size: int, generator: np.random.Generator, pool: int = 32
) -> list[np.ndarray[Any, Any]]:
    """A random order of all examples as batches of similar length: sorted within pools of `pool` batches."""
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), pool * batch_size):
        part = order[start : start + pool * batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def by_length(lengths: np.ndarray[Any, Any], batch_size: int) -> list[np.ndarray[Any, Any]]:
    """All examples once, shortest first, as batches (for evaluation: no padding to speak of)."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
