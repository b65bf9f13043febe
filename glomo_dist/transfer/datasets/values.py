"""What a column of a row must hold: a text, or the class or the split that it is of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.dataset import SPLITS

TRUTH = ("false", "true")  # the classes of a label that says whether something is so
_WHOLE = re.compile(r"\s*-?[0-9]{1,18}\s*")  # isdigit() is also true of '²'; 18 digits fit into int64


def whole_number(value: Any, where: str) -> int:
    """An integer label, or DataError."""
    if type(value) is int:
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    raise DataError(
        f"{where}: the label must be a whole number, got {value!r:.80}. Correct or remove the row."
    )


def text_of(row: dict[str, Any], names: tuple[str, ...], where: str, advice: str = "") -> str:
    """The text in the first of the columns `names` that the row has; DataError if there is none, with `advice`."""
    name = next((n for n in names if n in row), None)
    if name is None:
        raise DataError(
            f"{where}: none of the columns {', '.join(names)}; the row has {', '.join(row)}.{advice}"
        )
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"{where}: {name!r} must be a text, got {text!r:.80}. Correct or remove the row.")
    return text


def class_number(value: Any, where: str, classes: tuple[str, ...], *others: tuple[str, ...]) -> int:
    """The number of the class that a label names, in any case, or is, also as text or a whole float (pandas has them
    where a label is missing). others: further names of the same classes, which for `TRUTH` may be booleans. Raises
    DataError for all else."""
    if isinstance(value, str | bool):
        for names in (classes, *others):
            if (name := str(value).lower()) in names:
                return names.index(name)
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    number = int(whole) if isinstance(whole, str) and _WHOLE.fullmatch(whole) else whole
    if type(number) is not int or not 0 <= number < len(classes):
        raise DataError(
            f"{where}: label {value!r:.80} is not one of {', '.join(classes)}, nor a number from 0 to "
            f"{len(classes) - 1}. Correct or remove the row."
        )
    return number


def split_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """The split that the column names, or DataError."""
    if row.get(column) not in SPLITS:
        raise DataError(
            f"{where}: {column} must be one of {', '.join(SPLITS)}, got {row.get(column)!r:.80}. Correct or "
            "remove the row."
        )
    return str(row[column])


def no_label(value: Any) -> bool:
    """Whether it stands for "none": as the authors of SNLI write it, and as the hub does."""
    return value is None or value in ("-", "-1") or (isinstance(value, (int, float)) and value == -1)
