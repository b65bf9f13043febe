"""Names and texts from elsewhere, so that they can be shown on a page, in a figure and in a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

SHORT = 24  # columns

# What a terminal obeys, what turns the text after it around, and halves of surrogate pairs: what Python makes of a
# file's name that is not UTF-8, and what no encoding takes.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with a replacement character for each that cannot be shown or changes how others are."""
    return _UNFIT.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`text`, printable, with a space for every tab and end of a line."""
    return printable(re.sub(r"\s", " ", text))


def text_width(text: str) -> int:
    """Columns of a terminal, or letters of usual width, that `text` takes: two for a Chinese character."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


def ruled(lines: Sequence[Sequence[str]]) -> list[str]:
    """A table for a terminal, the first line its head: columns below one another, a rule below the head."""
    widths = [max(map(text_width, column)) for column in zip(*lines, strict=True)]
    head, *rows = (
        "  ".join(
            cell + " " * (width - text_width(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    return [head, "  ".join("─" * width for width in widths), *rows]


def short(text: str) -> str:
    """`text` in SHORT columns: where it is longer, an ellipsis stands for its middle."""
    cut, kept = text, SHORT - 1
    while text_width(cut) > SHORT:
        cut = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
        kept -= 1
    return cut


def labels(names: Sequence[str]) -> list[str]:
    """The names in short; where that is the same for several, with their number among all."""
    cut = [short(name) for name in names]
    return [name if cut.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(cut, 1)]


def folder_names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of each path as tell it from the others.  folders: resolved, each there once."""
    names = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        last = 1
        while any(other[-last:] == folder.parts[-last:] for other in others):
            last += 1
        names.append(str(Path(*folder.parts[-last:])))
    return names


def store_name(path: str | Path) -> str:
    """The folder and the one that it is in: by these the stores of an evaluation are told apart."""
    return "/".join(Path(path).parts[-2:])
