"""What a task is, and the examples it yields."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from glomo_dist.data.text import tokenize
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import derive_seed

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Split:
    """Examples of one split: units (list of str, or uint8 [H, W] or [H, W, C]) and int64 labels."""

    units: list[Any]
    labels: np.ndarray[Any, Any]


@dataclass(frozen=True)
class TaskData:
    """Splits "train", "dev", "test"; the names of the classes; a fingerprint of units and labels."""

    splits: dict[str, Split]
    classes: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Published:
    """A published number to compare with: test metric, the method it belongs to, and where it stands."""

    value: float
    method: str
    source: str


@dataclass(frozen=True)
class Task:
    """One downstream task. `version` grows whenever loading, splits or metric change.

    load(source, max_examples): source is a local path or a URL (fsspec), or None for a task whose data comes
        with installed packages; max_examples caps every split, drawn deterministically (None: all).
    max_units: default truncation (None: never cut).
    """

    name: str
    version: int
    unit: Literal["words", "pixels"]
    load: Callable[[str | None, int | None], TaskData]
    max_units: int | None
    data_source: str
    metric: str = "accuracy"
    published: tuple[Published, ...] = ()


@dataclass(frozen=True)
class Row:
    """A labelled text as read: `where` is "file, line n" for errors."""

    text: str
    label: int
    where: str


def text_data(
    name: str, rows: dict[str, list[Row]], classes: tuple[str, ...], max_examples: int | None
) -> TaskData:
    """Check labels, cap the splits, cut the texts into words (each distinct word kept once in memory)."""
    words: dict[str, str] = {}
    splits = {}
    for split in SPLITS:
        for row in rows[split]:
            if not 0 <= row.label < len(classes):
                raise DataError(
                    f"{row.where}: label {row.label} is out of range, task {name!r} has labels "
                    f"0..{len(classes) - 1} ({', '.join(classes)}). Correct or remove the row."
                )
        kept = [rows[split][i] for i in draw(len(rows[split]), max_examples, name, split)]
        units = [[words.setdefault(w, w) for w in tokenize(row.text)] for row in kept]
        splits[split] = Split(units, np.array([row.label for row in kept], np.int64))
    return checked(name, splits, classes)


def checked(name: str, splits: dict[str, Split], classes: tuple[str, ...]) -> TaskData:
    """TaskData with its fingerprint; raises DataError if a split is empty."""
    for split in SPLITS:
        if not splits[split].units:
            raise DataError(
                f"task {name!r}: the {split} split has no example. Check the files of the source."
            )
    return TaskData(splits, classes, _fingerprint(splits, classes))


def draw(n: int, at_most: int | None, *key: int | str) -> list[int]:
    """Indices 0..n-1, or `at_most` of them drawn by `key`, ascending."""
    if at_most is None or at_most >= n:
        return list(range(n))
    generator = np.random.default_rng(derive_seed("draw", *key))
    return sorted(generator.permutation(n)[:at_most].tolist())


def _fingerprint(splits: dict[str, Split], classes: Iterable[str]) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for name in SPLITS:
        split = splits[name]
        digest.update(f"\1{name} {len(split.units)}".encode())
        digest.update(split.labels.tobytes())
        for units in split.units:
            if isinstance(units, np.ndarray):
                digest.update(f"\2{units.shape}".encode() + units.tobytes())
            else:
                digest.update(b"\2" + "\0".join(units).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]
