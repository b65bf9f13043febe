"""Files of task data, local or by URL (fsspec), packed or not: which are there; arrays, and folders of texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.tar import TarFileSystem

from glomo_dist.data.storage.files import PACKED, InputFile, find_files
from glomo_dist.data.storage.packed import open_seekable
from glomo_dist.data.storage.patience import insist
from glomo_dist.data.storage.places import Address, open_place
from glomo_dist.data.storage.remote import file_system, over_http
from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.progress import bar, say

BAR_SECONDS = 5.0  # after which the reading of a folder of texts shows how far it is
STAR = "*"
_STARS = "[0-9]{5}(?:-[0-9a-f]{16})?|-[0-9a-f]{16}|"  # what a star in a name may be
_ARCHIVE = re.compile(r"\.(?:(zip)|tgz|tar(?:\.gz|\.xz|\.bz2)?)$")


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


def text_files(folder: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the .txt files right in `folder`, by name, but for hidden ones (macOS leaves `._1.txt`).

    Raises DataError if there is none: its class or level would be missing without a word.
    """
    where = folder
    try:
        # Listed, not matched by a pattern: the path itself may have [ ] * ? in it.
        filesystem, root = file_system(joined(folder, ""))
        paths = insist(partial(filesystem.ls, root, detail=False), where)
        texts: dict[str, bytes] = {}
        reading = f"reading {address_parts(folder)[0].rsplit('/', 1)[-1]}"
        in_order = _as_packed(filesystem, paths)
        for path in bar(in_order, desc=reading, unit="text", leave=False, delay=BAR_SECONDS):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".txt") and not name.startswith("."):
                where = joined(folder, name)
                texts[name] = insist(partial(filesystem.cat_file, joined(root, name)), where)
    except DataError:
        raise
    except Exception as e:  # a file system driver may raise anything: credentials, network
        raise DataError(f"{where} cannot be read: {describe(e)}. Check it, or unpack the set again.") from e
    if not texts:
        raise DataError(f"{folder} has no .txt file; unpack the set again.")
    for name in sorted(texts):
        yield joined(folder, name), texts[name]


def _as_packed(filesystem: Any, paths: Iterable[str]) -> list[str]:
    """In the order of the archive, where it is a tar file: in a packed one each step back begins at the start.

    A member is then had by its name at once, for which `tarfile` looks through all of them each time.
    """
    if not isinstance(filesystem, TarFileSystem):
        return sorted(paths)
    filesystem.tar.getmember = {member.name: member for member in filesystem.tar}.__getitem__
    index = filesystem.index  # path -> (facts, offset, …), without folders that are no member
    return sorted(paths, key=lambda path: index[path][1] if path in index else -1)


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
    or right in the set's own. The star stands for how many there are, and in older sets a hash. Its name for dev is
    validation."""
    split = split.replace("dev", "validation")
    names = f"{split}.parquet", f"{split}-00000-of-{STAR}.parquet"
    return tuple(f"{folder}{name}" for folder in ("", *folders) for name in names)


def address_parts(address: str) -> tuple[str, str]:
    """The address up to the end of the path, and what follows: a query, the archive that the path is in.

    "http://x/sst2?token=s" -> "http://x/sst2", "?token=s"; "zip://sst2::all.zip" -> "zip://sst2", "::all.zip".
    """
    links = address.split("::")
    # Before the first one with a path there may be caches: "simplecache::http://x/sst2".
    first = next((i for i, link in enumerate(links) if "://" in link), len(links) - 1)
    query = links[first].find("?") if over_http(links[first]) else -1
    follows = "".join(f"::{link}" for link in links[first + 1 :])
    if query >= 0:
        follows = links[first][query:] + follows
    return address.removesuffix(follows), follows


def joined(folder: str, name: str) -> str:
    """The address of `name` in `folder`."""
    path, follows = address_parts(folder)
    return f"{path}{'/' if path and not path.endswith('/') else ''}{name}{follows}"


def find(source: str, candidates: tuple[str, ...]) -> str | None:
    """The first of the relative paths `candidates` that exists below `source`, joined to it.

    Raises DataError where that cannot be found out, as what is there would be left out without a word.
    """
    refused = []
    try:
        fs, root = file_system(source)
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
        if "::" in source and isinstance(e, ValueError) and "range requests" in str(e):
            raise DataError(
                f"{source}: the server gives no parts of a file, as an archive needs. Download the archive first."
            ) from e
        raise DataError(f"{source} cannot be opened: {describe(e)}.") from e
    if refused:
        say(f"WARNING: {source}: the server refuses (403) {', '.join(refused)}; taken as not there")
    return None


def _spelled_out(fs: Any, root: str, name: str) -> str:
    """`name` with its star replaced by what a folder has there; by 1, if it has none or cannot be listed (HTTP)."""
    if STAR not in name:
        return name
    folder, _, file = name.rpartition("/")
    pattern = re.compile(re.escape(file).replace(re.escape(STAR), f"({_STARS})"))
    place = joined(root, folder) if folder else root
    found = []
    if not over_http(place):
        try:
            names = (path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(place, detail=False))
            found = sorted(match[1] for match in map(pattern.fullmatch, names) if match)
        except (FileNotFoundError, NotADirectoryError):
            pass
    if len(found) > 1:
        raise DataError(
            f"{place} has {' and '.join(file.replace(STAR, part) for part in found)}: files of two copies. Which are "
            "meant? Remove those of the other one."
        )
    return name.replace(STAR, found[0] if found else "00001")


def _exists(fs: Any, path: str) -> bool | None:
    """Not by exists(), which for many drivers says no whatever went wrong.

    None for HTTP's 403: a bucket that may not be listed answers so for what it does not have.
    """
    if not over_http(path):
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def attempt() -> bool | None:
        try:
            open_place(Address(path)).close()
        except FileNotFoundError:
            return False
        except Exception as e:
            if getattr(e, "status", None) == 403:
                return None
            raise
        return True

    try:
        return insist(attempt, path)
    except DataError:
        raise
    except Exception as e:  # a file system driver may raise anything
        raise DataError(f"{path} cannot be read: {describe(e)}.") from e


def require(source: str | None, candidates: tuple[str, ...], task: str) -> str:
    """`find`, or a DataError that says what is wrong with the source, and what was looked for."""
    names = _named_once(candidates)
    if source is None:
        raise DataError(f"task {task!r} needs a source: the folder or URL with {names}.")
    found = find(source, candidates)
    if found is None:
        # of the Hugging Face hub: a folder cannot be listed over http, and the number of files is in their names
        one = (
            " Of a split in several Parquet files give a copy on disk, or hf://datasets/OWNER/NAME: over http only "
            "one file can be found."
        )
        alone = one if over_http(source) and any(STAR in name for name in candidates) else ""
        raise DataError(f"task {task!r}: {source} {_lack(source, names)}{alone}")
    return found


def _named_once(candidates: tuple[str, ...]) -> str:
    """The names without those of packed copies, which follow from them."""
    stems = [name for name in candidates if not any(name in packed(other)[1:] for other in candidates)]
    plain = [name for name in stems if f"{name}{PACKED[0]}" not in candidates]
    packable = [name for name in stems if name not in plain]
    if packable:
        packable[-1] += f" (or packed: {' '.join(PACKED)})"
    return ", ".join(packable + plain)


def _lack(source: str, names: str) -> str:
    """Why there is nothing with `names` in the source, and what to do."""
    if (archive := _ARCHIVE.search(address_parts(source)[0])) and "::" not in source:
        kind = archive[1] or "tar"
        return (
            f"is an archive. Give {kind}://FOLDER::{source}, the folder in it that has one of {names}; where they "
            f"are in none, {kind}://::{source}."
        )
    # tar itself writes them so for `tar -c .`, and only so they are found
    dotted = " Members of an archive that begin with ./ are found by tar://./FOLDER::…, or tar://.::…."
    hint = dotted if source.startswith("tar://") and not source.startswith("tar://.") else ""
    try:
        filesystem, root = file_system(source)
        is_file = bool(root) and not over_http(root) and filesystem.info(root)["type"] == "file"
    except (FileNotFoundError, NotADirectoryError):
        if "::" in source and Path(source).exists():
            return (
                "is read as a chained address, as zip://FOLDER::ARCHIVE is. Give it by a path without '::'."
            )
        return f"does not exist; expected the folder with one of {names}. Check the path.{hint}"
    except Exception:  # a driver may have no such thing as a folder; what was looked for is not there
        is_file = False
    if is_file:
        return f"is a file; give the folder that has one of {names}."
    return f"has none of {names}.{hint}"
