"""Reading task files: local or by URL (fsspec), plain or compressed, with errors that name file and line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec

from glomo_dist.data.files import PACKED, describe, find_files
from glomo_dist.data.lines import json_objects, numbered_lines
from glomo_dist.runtime.errors import DataError

SUFFIXES = (".tsv", ".jsonl", ".txt", ".vec")


def lines(source: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 text file, unpacked by its ending (.gz, .xz, .zst).

    Raises DataError for a missing, unreadable or damaged file and for bytes that are not UTF-8.
    """
    return numbered_lines(find_files([source], SUFFIXES)[0])


def json_rows(source: str, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", row) of a .jsonl file; every row must be an object with `keys`."""
    for number, row in json_objects(find_files([source], SUFFIXES)[0]):
        where = f"{source}, line {number}"
        for key in keys:
            if key not in row:
                raise DataError(
                    f"{where}: key {key!r} is missing; the row has {', '.join(row) or 'no keys'}."
                )
        if "text" in keys and not isinstance(row["text"], str):
            raise DataError(f"{where}: 'text' must be a string, got {row['text']!r}.")
        yield where, row


def packed(*stems: str) -> tuple[str, ...]:
    """The file names with every ending that a packed copy may have."""
    return tuple(f"{stem}{ending}" for stem in stems for ending in ("", *PACKED))


def whole_number(value: Any, where: str) -> int:
    """An integer label, or DataError."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    raise DataError(f"{where}: the label must be a whole number, got {value!r}.")


def find(source: str, candidates: tuple[str, ...]) -> str | None:
    """The first of the relative paths `candidates` that exists below `source`, joined to it."""
    try:
        fs, root = fsspec.core.url_to_fs(source)
        for name in candidates:
            if fs.exists(f"{root.rstrip('/')}/{name}"):
                return f"{source.rstrip('/')}/{name}"
    except Exception as e:  # a file system driver may raise anything: bad scheme, credentials, network
        raise DataError(f"{source} cannot be opened: {describe(e)}.") from e
    return None


def require(source: str | None, candidates: tuple[str, ...], task: str) -> str:
    """`find`, or a DataError that lists what was looked for."""
    if source is None:
        raise DataError(f"task {task!r} needs a source: the folder or URL with {' or '.join(candidates)}.")
    found = find(source, candidates)
    if found is None:
        raise DataError(f"task {task!r}: {source} has none of {', '.join(candidates)}.")
    return found
