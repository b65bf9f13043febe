"""What a task is, and the examples it yields."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from glomo_dist.data.tokenizers.text import tokenize
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.checks import class_numbers, require_label, require_one_kind, require_pixels
from glomo_dist.transfer.readers.models import Reader, ReaderSizes

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Column:
    """One of the inputs that every example of a split has: its text, its premise, its answer options.

    values: the inputs, each a list of str, or an image uint8 [H, W] or [H, W, C]. A text that several examples
        share is there once, so its graphs are computed and stored once.
    of: int64 [examples, k]: the values of each example; k is 1 but for options.
    """

    values: list[Any]
    of: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """Examples of one split: their inputs by name, and their labels, int64 classes [examples] or spans [examples, 2].

    groups: a name for each example of the subset it is of, where results are reported for subsets too, or none.
    references: for each example what the metric compares with, where that is not the label, or none.
    """

    columns: dict[str, Column]
    labels: np.ndarray[Any, Any]
    groups: tuple[str, ...] = ()
    references: tuple[Any, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """Splits "train", "dev", "test"; the names of the classes; a fingerprint of inputs and labels.

    skipped: rows of the source that are no examples, counted by reason ("train: no gold label").
    """

    splits: dict[str, Split]
    classes: tuple[str, ...]
    fingerprint: str
    skipped: dict[str, int] = field(default_factory=dict)


def left_out(skipped: Mapping[str, int]) -> str:
    """`TaskData.skipped` in words: "left out: 300 train: no gold label, 2 test: no gold label"."""
    return "left out: " + ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())


@dataclass(frozen=True)
class Published:
    """A published number to compare with: test metric, the method it belongs to, and where it stands."""

    value: float
    method: str
    source: str


def accuracy(split: Split, predictions: np.ndarray[Any, Any]) -> dict[str, float]:
    """Share of right answers, and the same for every group ("accuracy.matched")."""
    right = predictions == split.labels
    groups = np.array(split.groups)
    return {
        "accuracy": float(right.mean()),
        **{
            f"accuracy.{name}": float(right[groups == name].mean())
            for name in sorted(set(split.groups) - {""})
        },
    }


@dataclass(frozen=True)
class Task:
    """One downstream task. `version` grows whenever loading, splits or metric change.

    load(source, max_examples): source is a local path or a URL (fsspec), or None for a task whose data comes
        with installed packages; max_examples caps every split, drawn deterministically (None: all).
    columns: the inputs of an example, the one to be drawn in reports first, and how many units of each are kept
        by default (None: never cut).
    model: makes the reader; the arguments of its `forward` are the columns, which is checked here if it is a class.
    measure(split, predictions [examples, …] in the order of the split): all metrics, shares in [0, 1].
    metric: the one that chooses the epoch and stands in tables.
    data_source: the set by its name, with who published it, for the report.
    """

    name: str
    version: int
    unit: Literal["words", "pixels"]
    load: Callable[[str | None, int | None], TaskData]
    columns: dict[str, int | None]
    model: Callable[[ReaderSizes], Reader]
    data_source: str
    measure: Callable[[Split, np.ndarray[Any, Any]], dict[str, float]] = accuracy
    metric: str = "accuracy"
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        """ConfigError if the columns are not what the reader takes: found here, not by each job after an export."""
        if not isinstance(self.model, type):  # a function: what it makes is known when it is called
            return
        _, *arguments = inspect.signature(self.model.forward).parameters.values()  # after self
        names = {one.name for one in arguments}
        needed = {one.name for one in arguments if one.default is one.empty}
        takes_all = any(one.kind is one.VAR_KEYWORD for one in arguments)
        if not takes_all and not needed <= set(self.columns) <= names:
            raise ConfigError(
                f"task {self.name!r}: its columns are {', '.join(self.columns)}, but {self.model.__name__} reads "
                f"{', '.join(one.name for one in arguments)}. Give the columns these names, in `columns` and in the "
                "rows, or the task another `model`."
            )

    def limits(self, max_units: int | None) -> dict[str, int | None]:
        """The truncation in force: `max_units` for every column, or each its own; images are never cut."""
        if max_units is None:
            return dict(self.columns)
        if self.unit == "pixels":
            raise ConfigError(f"max_units: task {self.name!r} has images, which cannot be cut; leave it out.")
        if max_units < 1:
            raise ConfigError(f"max_units must be at least 1, got {max_units}.")
        return dict.fromkeys(self.columns, max_units)


@dataclass(frozen=True)
class Row:
    """A labelled example as read.

    texts: by column, a list for options.  label: its class, or the first and last word of its span.
    where: "file, line n" for errors.  group, reference: as in `Split`.
    """

    texts: Mapping[str, str | Sequence[str]]
    label: int | tuple[int, int]
    where: str
    group: str = ""
    reference: Any = None


def section(split: str, column: str) -> str:
    """What the graphs of a column are called in a graph store."""
    return f"{split}.{column}"


def text_data(
    name: str,
    rows: dict[str, list[Row]],
    classes: tuple[str, ...],
    max_examples: int | None,
    *,
    filled: Iterable[str] = (),
    skipped: dict[str, int] | None = None,
    dev: str = "",
    cut: Callable[[str], Iterable[str]] = tokenize,
) -> TaskData:
    """Check labels, cap the splits, cut the texts into words (each distinct word kept once in memory).

    filled: columns in which a text without a word is an error.  skipped: as in TaskData.
    dev: as in `checked`.  cut: gives the units of a text, which are to be those of the predictor.
    """
    _require_splits(name, rows)
    words: dict[str, str] = {}
    splits = {}
    for split in SPLITS:
        for row in rows[split]:
            require_label(row.label, row.where, name, classes)
        require_one_kind([(row.label, row.where) for row in rows[split]], name)
        kept = [rows[split][i] for i in draw(len(rows[split]), max_examples, name, split)]
        columns = {column: _column(kept, column, words, cut) for column in (kept[0].texts if kept else ())}
        for column in filled:
            _require_words(kept, columns, column)
        groups = tuple(row.group for row in kept) if any(row.group for row in kept) else ()
        references = tuple(row.reference for row in kept)
        if all(reference is None for reference in references):
            references = ()
        splits[split] = Split(columns, np.array([row.label for row in kept], np.int64), groups, references)
    return checked(name, splits, classes, skipped, dev)


def _column(
    rows: list[Row], column: str, words: dict[str, str], cut: Callable[[str], Iterable[str]]
) -> Column:
    numbers: dict[str, int] = {}
    of = []
    for row in rows:
        value: Any = row.texts.get(column)
        texts = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{row.where}: the {column} must be text, or texts, got {value!r:.80}.")
        of.append([numbers.setdefault(text, len(numbers)) for text in texts])
        if len(texts) != len(of[0]):
            raise DataError(
                f"{row.where}: the {column} has {counted(len(texts), 'text')}, that of {rows[0].where} has "
                f"{len(of[0])}. Every example needs as many."
            )
    values = [[words.setdefault(w, w) for w in cut(text)] for text in numbers]
    return Column(values, np.array(of, np.int64))


def _require_words(rows: list[Row], columns: dict[str, Column], column: str) -> None:
    if not rows:
        return
    lengths = np.array([len(value) for value in columns[column].values])
    empty = np.flatnonzero((lengths[columns[column].of] == 0).any(1))
    if empty.size:
        raise DataError(
            f"{rows[empty[0]].where}: the {column} has no word in it ({counted(empty.size, 'such row')} in this "
            "split). Complete or remove the row."
        )


def checked(
    name: str,
    splits: dict[str, Split],
    classes: tuple[str, ...],
    skipped: dict[str, int] | None = None,
    dev: str = "",
) -> TaskData:
    """TaskData with its fingerprint; raises DataError for a label that is none, and if a split is missing or empty,
    saying what was left out of it.

    dev: what the dev split is where it is drawn from train, "one text in 10 of train, chosen by its hash".
    """
    skipped = skipped or {}
    _require_splits(name, splits)
    for split in SPLITS:
        if not len(splits[split].labels):
            drawn = f" It is {dev}: is there enough of it?" if split == "dev" and dev else ""
            raise DataError(
                f"task {name!r}: the {split} split has no example{_lost(split, skipped)}.{drawn} Check the files of "
                "the source."
            )
    kept = {}
    for split in SPLITS:
        of = f" of {split}", f"{split} example"
        labels = class_numbers(splits[split].labels, len(classes), f"task {name!r}", *of)
        kept[split] = replace(splits[split], labels=labels)
    return TaskData(kept, classes, _fingerprint(kept, classes), skipped)


def _require_splits(name: str, there: Collection[str]) -> None:
    for split in SPLITS:
        if split not in there:
            raise DataError(
                f"task {name!r}: no {split} split, only {', '.join(there)}. Give all of {', '.join(SPLITS)}."
            )


def _lost(split: str, skipped: Mapping[str, int]) -> str:
    """What was left out of the split, in brackets."""
    lost = [
        f"{count} left out: {reason.removeprefix(f'{split}: ')}"
        for reason, count in skipped.items()
        if reason.startswith(f"{split}: ")
    ]
    return f" ({'; '.join(lost)})" if lost else ""


def images_split(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Split:
    """A split of uint8 images [n, H, W] or [n, H, W, C] with labels [n]; DataError if they are anything else."""
    require_pixels(images, labels, "images_split")
    return Split({"image": Column(list(images), np.arange(len(images))[:, None])}, labels)


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
        digest.update(f"\1{name} {split.labels.shape}".encode() + split.labels.tobytes())
        digest.update("\0".join(split.groups).encode())
        for reference in split.references:
            # of a long array `repr` leaves out the middle
            said = reference.tolist() if isinstance(reference, np.ndarray) else reference
            digest.update(repr(said).encode(errors="surrogatepass"))
        for column, inputs in split.columns.items():
            digest.update(f"\3{column} {inputs.of.shape}".encode() + inputs.of.tobytes())
            for value in inputs.values:
                if isinstance(value, np.ndarray):
                    digest.update(f"\2{value.shape}".encode() + value.tobytes())
                else:
                    digest.update(b"\2" + "\0".join(value).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]
