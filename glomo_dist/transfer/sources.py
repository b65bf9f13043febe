"""Reading task files: local or by URL (fsspec), plain or compressed, with errors that name file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np

from glomo_dist.data.files import PACKED, InputFile, describe, find_files, open_seekable
from glomo_dist.data.lines import json_objects, numbered_lines
from glomo_dist.data.parquet import parquet_rows
from glomo_dist.data.places import Address, attempts, open_place
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.secrets import shown

RETRY_SECONDS = 20.0  # how long a server in trouble is asked again whether it has a file
HTTP = ("http://", "https://")
SUFFIXES = (".tsv", ".jsonl", ".txt", ".vec")
_FIRST_OF = re.compile(r"-00000-of-([0-9]{5})\.parquet$")
_WHOLE = re.compile(r"\s*-?[0-9]{1,18}\s*")  # isdigit() is also true of '²'; 18 digits fit into int64


def one_file(source: str, suffixes: tuple[str, ...]) -> InputFile:
    """The file `source`; raises DataError for a folder, or a pattern of several files: which one was meant?"""
    files = find_files([source], suffixes)
    pattern = any(mark in source for mark in "*?[")
    if len(files) > 1 or not (files[0].outright or pattern):
        names = ", ".join(file.name for file in files[:5]) + (", …" if len(files) > 5 else "")
        raise DataError(
            f"{source}: expected one file, got a folder or pattern with {names}. Name one of them."
        )
    return files[0]


def lines(source: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 text file, unpacked by its ending (.gz, .xz, .zst).

    Raises DataError for a missing, unreadable or damaged file and for bytes that are not UTF-8.
    """
    return numbered_lines(one_file(source, SUFFIXES))


def table(source: str) -> Iterator[tuple[str, list[str]]]:
    """("file, line n", cells) of a tab-separated file's lines that are not blank; quotes are ordinary characters."""
    for number, line in lines(source):
        if line.strip():
            yield f"{source}, line {number}", line.split("\t")


def records(source: str, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", row) of a .jsonl file, or ("file, row n", row) of a split's Parquet files.

    source: of several files of a split the first.  keys: what every row must have, else a DataError.
    """
    for where, row in _parquet(source) if has_ending(source, ".parquet") else _json_lines(source):
        for key in keys:
            if key not in row:
                raise DataError(
                    f"{where}: key {key!r} is missing; the row has {', '.join(row) or 'no keys'}."
                )
        yield where, row


def _json_lines(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in json_objects(one_file(source, SUFFIXES)):
        yield f"{source}, line {number}", row


def _parquet(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    path, follows = address_parts(source)
    names = [source]
    if numbered := _FIRST_OF.search(path):
        stem = path[: numbered.start()]
        names = [f"{stem}-{i:05}-of-{numbered[1]}.parquet{follows}" for i in range(int(numbered[1]))]
    for name in names:
        for row, values in parquet_rows(one_file(name, (".parquet",))):
            yield f"{name}, row {row}", values


def text_files(folder: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the .txt files right in `folder`, by name, but for hidden ones (macOS leaves `._1.txt`).

    Raises DataError if there is none: its class or level would be missing without a word.
    """
    where = folder
    try:
        # Listed, not matched by a pattern: the path itself may have [ ] * ? in it.
        filesystem, root = fsspec.core.url_to_fs(joined(folder, ""))
        names = {path.rsplit("/", 1)[-1] for path in filesystem.ls(root, detail=False)}
        texts = sorted(name for name in names if name.endswith(".txt") and not name.startswith("."))
        for name in texts:
            where = joined(folder, name)
            yield where, filesystem.cat_file(joined(root, name))
    except Exception as e:  # a file system driver may raise anything: credentials, network
        raise DataError(f"{where} cannot be read: {describe(e)}. Check it, or unpack the set again.") from e
    if not texts:
        raise DataError(f"{folder} has no .txt file; unpack the set again.")


def npz_arrays(source: str, *names: tuple[str, ...]) -> list[np.ndarray[Any, Any]]:
    """Arrays of an .npz file, local or by URL, also packed; of each of `names` the first that is in it."""
    arrays = []
    with open_seekable(one_file(source, (".npz",))) as stream:
        try:
            with np.lib.npyio.NpzFile(stream, allow_pickle=False) as archive:
                for either in names:
                    key = next((name for name in either if name in archive.files), None)
                    if key is None:
                        known = ", ".join(archive.files)
                        raise DataError(f"{source}: array {either[0]!r} is missing; it has {known}.")
                    arrays.append(np.asarray(archive[key]))
        except (DataError, MemoryError):
            raise
        except Exception as e:  # numpy, zipfile and zlib each have their own for a damaged file
            if "allow_pickle" in str(e):
                raise DataError(
                    f"{source}: an array of Python objects, which could execute code, so it is not read. Save it as "
                    "numbers or str."
                ) from None
            raise DataError(f"{source}: not a readable .npz file ({describe(e)}). Copy it again.") from e
    return arrays


def packed(*stems: str) -> tuple[str, ...]:
    """The file names with every ending that a packed copy may have."""
    return tuple(f"{stem}{ending}" for stem in stems for ending in ("", *PACKED))


def has_ending(path: str, *endings: str) -> bool:
    """Whether the file name in `path` has one of `endings`, packed or not."""
    return address_parts(path)[0].endswith(packed(*endings))


def has_records(path: str) -> bool:
    """Whether `records` reads the file."""
    return has_ending(path, ".jsonl", ".parquet")


def parquet_names(split: str, *folders: str) -> tuple[str, ...]:
    """Where a set as the Hugging Face hub has it keeps a split: in one or several Parquet files, in one of `folders`
    or right in the set's own. The star stands for how many there are."""
    names = f"{split}.parquet", f"{split}-00000-of-*.parquet"
    return tuple(f"{folder}{name}" for folder in ("", *folders) for name in names)


def address_parts(address: str) -> tuple[str, str]:
    """The address up to the end of the path, and what follows: a query, the archive that the path is in.

    "http://x/sst2?token=s" -> "http://x/sst2", "?token=s"; "zip://sst2::all.zip" -> "zip://sst2", "::all.zip".
    """
    links = address.split("::")
    # Before the first one with a path there may be caches: "simplecache::http://x/sst2".
    first = next((i for i, link in enumerate(links) if "://" in link), len(links) - 1)
    query = links[first].find("?") if links[first].startswith(HTTP) else -1
    follows = "".join(f"::{link}" for link in links[first + 1 :])
    if query >= 0:
        follows = links[first][query:] + follows
    return address.removesuffix(follows), follows


def joined(folder: str, name: str) -> str:
    """The address of `name` in `folder`."""
    path, follows = address_parts(folder)
    return f"{path}{'/' if path and not path.endswith('/') else ''}{name}{follows}"


def whole_number(value: Any, where: str) -> int:
    """An integer label, or DataError."""
    if type(value) is int:
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    raise DataError(f"{where}: the label must be a whole number, got {value!r:.80}.")


def text_of(row: dict[str, Any], names: tuple[str, ...], where: str, advice: str = "") -> str:
    """The text in the first of the columns `names` that the row has; DataError if there is none, with `advice`."""
    name = next((n for n in names if n in row), None)
    if name is None:
        raise DataError(
            f"{where}: none of the columns {', '.join(names)}; the row has {', '.join(row)}.{advice}"
        )
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"{where}: {name!r} must be a text, got {text!r:.80}.")
    return text


def class_number(value: Any, classes: tuple[str, ...], where: str) -> int:
    """The number of the class that a label names or is itself, or DataError."""
    return classes.index(value) if value in classes else whole_number(value, where)


def find(source: str, candidates: tuple[str, ...]) -> str | None:
    """The first of the relative paths `candidates` that exists below `source`, joined to it.

    Raises DataError where that cannot be found out, as what is there would be left out without a word.
    """
    refused = []
    try:
        fs, root = fsspec.core.url_to_fs(source)
        for candidate in candidates:
            name = _spelled_out(fs, root, candidate)
            there = _exists(fs, joined(root, name))
            if there:
                return joined(source, name)
            if there is None:
                refused.append(name)
    except DataError:
        raise
    except Exception as e:  # a file system driver may raise anything: bad scheme, credentials, network
        raise DataError(f"{source} cannot be opened: {describe(e)}.") from e
    if refused:
        say(f"WARNING: {shown(source)}: the server refuses (403) {', '.join(refused)}; taken as not there")
    return None


def _spelled_out(fs: Any, root: str, name: str) -> str:
    """`name` with its star replaced by what a folder has there; 1, where it has none or cannot be listed (HTTP)."""
    if "*" not in name:
        return name
    folder, _, file = name.rpartition("/")
    pattern = re.compile(re.escape(file).replace(r"\*", "([0-9]{5})"))
    place = joined(root, folder) if folder else root
    found = []
    if not place.startswith(HTTP):
        try:
            names = (path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(place, detail=False))
            found = sorted(match[1] for match in map(pattern.fullmatch, names) if match)
        except (FileNotFoundError, NotADirectoryError):
            pass
    if len(found) > 1:
        raise DataError(
            f"{place} has the first of {' and of '.join(str(int(n)) for n in found)} files named {file}. Which are "
            "meant? Remove those of the other copy."
        )
    return name.replace("*", found[0] if found else "00001")


def _exists(fs: Any, path: str) -> bool | None:
    """Not by exists(), which for many drivers says no whatever went wrong.

    None for HTTP's 403: a bucket that may not be listed answers so for what it does not have.
    """
    if not path.startswith(HTTP):
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True
    address = Address(path)

    def attempt(until: float) -> bool | None:
        try:
            open_place(address).close()
        except FileNotFoundError:
            return False
        except Exception as e:
            if getattr(e, "status", None) == 403:
                return None
            raise
        return True

    return attempts(attempt, address, RETRY_SECONDS)


def require(source: str | None, candidates: tuple[str, ...], task: str) -> str:
    """`find`, or a DataError that lists what was looked for."""
    if source is None:
        raise DataError(f"task {task!r} needs a source: the folder or URL with {' or '.join(candidates)}.")
    found = find(source, candidates)
    if found is None:
        raise DataError(f"task {task!r}: {source} has none of {', '.join(candidates)}.")
    return found
