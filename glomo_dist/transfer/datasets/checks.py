"""Whether labels and pixels are what a task's data are made of: clear errors before anything is trained on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.dataset import SPLITS, Split


def require_label(label: Any, where: str, name: str, classes: tuple[str, ...]) -> None:
    """DataError naming `where` unless the label is a class of task `name`, or the two words of a span.

    NumPy's integers are as Python's.
    """
    if isinstance(label, (tuple, list, np.ndarray)):
        if len(label) != 2 or not all(isinstance(word, Integral) for word in label):
            raise DataError(
                f"{where}: label {label!r:.80} is no span, the whole numbers of its first and its last word. "
                "Correct or remove the row. (Labels of other forms: docs/transfer.md, to add a task.)"
            )
    elif not isinstance(label, Integral) or not 0 <= int(label) < len(classes):
        wrong = "out of range" if isinstance(label, Integral) else "no whole number"
        raise DataError(
            f"{where}: label {label!r:.80} is {wrong}, task {name!r} has labels "
            f"0..{len(classes) - 1} ({', '.join(classes)}). Correct or remove the row."
        )


def require_one_kind(labels: Iterable[tuple[Any, str]], name: str) -> None:
    """DataError naming the first of the (label, where) that is a class among spans, or a span among classes."""
    first: tuple[bool, str] | None = None
    for label, where in labels:
        span = not isinstance(label, Integral)
        first = first or (span, where)
        if span != first[0]:
            kinds = ("a span", "a class") if span else ("a class", "a span")
            raise DataError(
                f"{where}: label {label!r:.80} is {kinds[0]}, that of {first[1]} is {kinds[1]}. The labels of "
                f"task {name!r} must be of one kind."
            )


def require_splits(name: str, there: Collection[str]) -> None:
    """DataError unless all splits of task `name` are there."""
    for split in SPLITS:
        if split not in there:
            raise DataError(
                f"task {name!r}: no {split} split, only {', '.join(there)}. Give all of {', '.join(SPLITS)}."
            )


def require_columns(name: str, splits: Mapping[str, Split]) -> None:
    """DataError naming the split and the column of task `name` whose inputs are none, or not a row of values for each
    label; and if there are groups or references, but not of each example."""
    for split, examples in splits.items():
        n = len(examples.labels)
        for column, inputs in examples.columns.items():
            where, of = f"task {name!r}: column {column!r} of {split}", inputs.of
            rows = isinstance(of, np.ndarray) and np.issubdtype(of.dtype, np.integer) and of.ndim == 2
            if not rows or len(of) != n or not of.shape[1]:
                got = f"{of.dtype} {of.shape}" if isinstance(of, np.ndarray) else f"{of!r:.80}"
                raise DataError(
                    f"{where}: `of` must be whole numbers [{n}, k], the values of each example, got {got}."
                )
            if of.size and not 0 <= of.min() <= of.max() < len(inputs.values):
                raise DataError(
                    f"{where}: `of` has numbers from {of.min()} to {of.max()}, there are "
                    f"{counted(len(inputs.values), 'value')}, counted from 0."
                )
            for number, value in enumerate(inputs.values):
                if not isinstance(value, (list, tuple, np.ndarray)):
                    raise DataError(
                        f"{where}: value {number} must be a list of words or an image, got {value!r:.80}."
                    )
        for what in ("groups", "references"):
            if (found := len(getattr(examples, what))) not in (0, n):
                raise DataError(
                    f"task {name!r}: {what} of {split} are {found}, for {counted(n, 'example')}. Give one for each, "
                    "or none."
                )


def class_numbers(
    labels: np.ndarray[Any, Any], classes: int, where: str, of: str = "", item: str = "image"
) -> np.ndarray[Any, Any]:
    """The labels [n], or spans [n, 2], as int64; DataError naming `where` and the first label that is no class.

    of, item: words of the message, "labels{of}" and "label 7 of {item} 3".
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: labels{of} must be whole numbers, got {labels.dtype}.")
    bad = np.flatnonzero((labels < 0) | (labels >= classes)) if labels.ndim == 1 else np.empty(0, np.int64)
    if bad.size:
        raise DataError(
            f"{where}: label {labels[bad[0]]} of {item} {bad[0]} is out of range, expected 0..{classes - 1}. "
            "Correct or remove it, or copy the files again."
        )
    return labels.astype(np.int64, copy=False)


def require_shape(image: np.ndarray[Any, Any], shape: tuple[int, ...], what: str) -> None:
    """DataError if the image, called `what`, has not the shape of the first one."""
    if image.shape != shape:
        raise DataError(f"{what} has shape {image.shape}, the first one {shape}. Resize them to one size.")


def require_pixels(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], where: str) -> None:
    """DataError naming `where` unless these are uint8 images [n, H, W] or [n, H, W, C], and as many labels."""
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where}: expected images [n, H, W] or [n, H, W, C] and labels [n], got "
            f"{images.shape} and {labels.shape}."
        )
    if np.issubdtype(images.dtype, np.floating):
        bad = np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(1))
        if bad.size:
            raise DataError(
                f"{where}: image {bad[0]} holds NaN or infinite values ({counted(bad.size, 'such image')}"
                "). Repair or remove them."
            )
    if images.dtype != np.uint8:
        raise DataError(f"{where}: images must be uint8 0..255, got {images.dtype}. Scale them first.")
