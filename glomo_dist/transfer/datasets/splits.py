"""From the rows or images of a data set to the splits of a task: checked, capped, cut into words, fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from glomo_dist.data.tokenizers.text import tokenize
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.checks import (
    class_numbers,
    require_columns,
    require_label,
    require_one_kind,
    require_pixels,
    require_splits,
)
from glomo_dist.transfer.datasets.dataset import SPLITS, Column, Row, Split, TaskData


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
    require_splits(name, rows)
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
    """TaskData with its fingerprint; raises DataError for a label that is none, for columns that are not of as many
    examples, and if a split is missing or empty, saying what was left out of it.

    dev: what the dev split is where it is drawn from train, "one text in 10 of train, chosen by its hash".
    """
    skipped = skipped or {}
    require_splits(name, splits)
    for split in SPLITS:
        if not len(splits[split].labels):
            drawn = f" It is {dev}: is there enough of it?" if split == "dev" and dev else ""
            raise DataError(
                f"task {name!r}: the {split} split has no example{_lost(split, skipped)}.{drawn} Check the files of "
                "the source."
            )
    require_columns(name, splits)
    kept = {}
    for split in SPLITS:
        of = f" of {split}", f"{split} example"
        labels = class_numbers(splits[split].labels, len(classes), f"task {name!r}", *of)
        kept[split] = replace(splits[split], labels=labels)
    return TaskData(kept, classes, _fingerprint(kept, classes), skipped)


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
    digest = hashlib.sha256(_bytes("\0".join(classes)))
    for name in SPLITS:
        split = splits[name]
        digest.update(_bytes(f"\1{name} {split.labels.shape}") + split.labels.tobytes())
        digest.update(_bytes("\0".join(split.groups)))
        for reference in split.references:
            # of a long array `repr` leaves out the middle
            said = reference.tolist() if isinstance(reference, np.ndarray) else reference
            digest.update(_bytes(repr(said)))
        for column, inputs in split.columns.items():
            digest.update(_bytes(f"\3{column} {inputs.of.shape}") + inputs.of.tobytes())
            for value in inputs.values:
                if isinstance(value, np.ndarray):
                    digest.update(_bytes(f"\2{value.shape}") + value.tobytes())
                else:
                    digest.update(b"\2" + _bytes("\0".join(value)))
    return digest.hexdigest()[:16]


def _bytes(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which is legal in JSON, gets three bytes of its own."""
    return text.encode(errors="surrogatepass")
