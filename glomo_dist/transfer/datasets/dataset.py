"""What a task is, and the examples it yields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from glomo_dist.data.storage.remote import archives_kept_open
from glomo_dist.runtime.config import check_fields
from glomo_dist.runtime.errors import ConfigError
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
    """Share of the labels that are predicted rightly, and the same for every group ("accuracy.matched")."""
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
        """ConfigError for a field of another type, and if the columns are not what the reader takes: found here, not
        by each job after an export."""
        check_fields(self, f"task {self.name!r}: ")
        for name, units in self.columns.items():
            if units is not None and units < 1:
                raise ConfigError(
                    f"task {self.name!r}: columns.{name} must be at least 1 unit, or None for all, got {units}."
                )
        if not isinstance(self.model, type):  # a function: what it makes is known when it is called
            return
        forward = inspect.signature(cast(type[Reader], self.model).forward)
        _, *arguments = forward.parameters.values()  # after self
        names = {one.name for one in arguments}
        needed = {one.name for one in arguments if one.default is one.empty}
        takes_all = any(one.kind is one.VAR_KEYWORD for one in arguments)
        if not takes_all and not needed <= set(self.columns) <= names:
            raise ConfigError(
                f"task {self.name!r}: its columns are {', '.join(self.columns)}, but {self.model.__name__} reads "
                f"{', '.join(one.name for one in arguments)}. Give the columns these names, in `columns` and in the "
                "rows, or the task another `model`."
            )

    def data(self, source: str | None, max_examples: int | None) -> TaskData:
        """What `load` gives; an archive that it looks into again and again is opened once."""
        with archives_kept_open():
            return self.load(source, max_examples)

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
