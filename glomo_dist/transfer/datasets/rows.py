"""The rows of a task's file: text, tables, CSV, JSON lines, Parquet; errors name file and line."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from glomo_dist.data.storage.lines import json_objects, numbered_lines
from glomo_dist.data.storage.parquet import parquet_rows
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.sources import STAR, address_parts, find, has_ending, joined, one_file

SUFFIXES = (".tsv", ".jsonl", ".txt")
_FIRST_OF = re.compile(r"-00000-of-([0-9]{5})(?:-[0-9a-f]{16})?\.parquet$")


def lines(source: str, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 text file, unpacked by its ending (.gz, .xz, .zst).

    Raises DataError for a missing, unreadable or damaged file and for bytes that are not UTF-8.
    """
    return numbered_lines(one_file(source, suffixes))


def table(source: str) -> Iterator[tuple[str, list[str]]]:
    """("file, line n", cells) of a tab-separated file's lines that are not blank; one with tabs never is. Quotes are
    ordinary characters."""
    for number, line in lines(source):
        if "\t" in line or line.strip():
            yield f"{source}, line {number}", line.split("\t")


def csv_rows(
    source: str, keys: tuple[str, ...] = (), *, header: Sequence[str] = (), delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """("file, line n", row) of a CSV file, local or by URL, also packed; n is the line where the row begins.

    The first line that is not blank names the columns; a file without such a line is given them as `header`.
    keys: columns that it must have.  A line break in a cell is read as "\\n".
    Raises DataError for a row of another length, and for quotes that are not closed or not doubled in a cell.
    """
    names = list(header)
    for where, cells in _cells(source, delimiter):
        if not names:
            names = cells
            require_once(where, names, names)
            require_keys(
                where, names, keys,
                " It is taken for the names of the columns; of a file without such a line, give them as `header`.",
            )  # fmt: skip
        elif len(cells) != len(names):
            raise DataError(
                f"{where}: {counted(len(cells), 'cell')}, expected {len(names)} ({', '.join(names)}). A cell with "
                f"{delimiter!r} in it must be in quotes."
            )
        else:
            yield where, dict(zip(names, cells, strict=True))


def _cells(source: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Cells of all rows that are not blank."""
    text = (f"{line}\n" for _, line in lines(source, (".csv", *SUFFIXES)))
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    begins = 1
    # Of the whole process; if nobody says so 131,072 characters, less than a long document.
    csv.field_size_limit(2**31 - 1)
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield f"{source}, line {begins}", cells
            begins = reader.line_num + 1
    except csv.Error as e:
        raise DataError(
            f"{source}, line {begins}: not CSV ({e}). Are all quotes closed, and doubled inside a cell? Mend the row."
        ) from None


def records(
    source: str, keys: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", row) of a .jsonl file, or ("file, row n", row) of a split's Parquet files.

    source: of several files of a split the first.  keys: what every row must have, else a DataError.
    optional: what else is read of Parquet; a row of JSON has all its keys.
    """
    rows = _parquet(source, keys, optional) if has_ending(source, ".parquet") else _json_lines(source)
    for where, row in rows:
        require_keys(where, row, keys)
        yield where, row


def require_keys(where: str, row: Collection[str], keys: tuple[str, ...], hint: str = "") -> None:
    """DataError if one of `keys` is missing in a row, or among its columns."""
    for key in keys:
        if key not in row:
            there = ", ".join(row) or "no keys"
            raise DataError(f"{where}: key {key!r} is missing; the row has {there:.200}.{hint}")


def require_once(where: str, header: Sequence[str], names: Iterable[str]) -> None:
    """DataError if two columns of a table have one of these names: which of them is meant?"""
    for name in names:
        if header.count(name) > 1:
            raise DataError(f"{where}: two columns are called {name!r}. Rename or delete one of them.")


def _json_lines(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in json_objects(one_file(source, SUFFIXES)):
        yield f"{source}, line {number}", row


def _parquet(
    source: str, keys: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in [source, *_following(source)]:
        for row, values in parquet_rows(one_file(name, (".parquet",)), keys, optional):
            yield f"{name}, row {row}", values


def _following(first: str) -> Iterator[str]:
    """The other files of a split whose first one is "train-00000-of-00003.parquet"."""
    folder, _, file = address_parts(first)[0].rpartition("/")
    numbered = _FIRST_OF.search(file)
    if numbered is None:
        return
    for number in range(1, int(numbered[1])):
        name = f"{file[: numbered.start()]}-{number:05}-of-{numbered[1]}{STAR}.parquet"
        place = f"{folder}{address_parts(first)[1]}"
        yield find(place, (name,)) or joined(place, name.replace(STAR, ""))
