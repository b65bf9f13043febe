"""Finding input files: local or remote (fsspec), plain or packed, with errors that name the file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem, make_path_posix

from glomo_dist.data.storage.patience import insist
from glomo_dist.data.storage.remote import file_system, is_local, over_http
from glomo_dist.runtime.errors import DataError, describe

PACKED = (".gz", ".xz", ".zst")
LINKS = "links to files that are read already"


@dataclass(frozen=True)
class InputFile:
    """One input file.

    name: as the user would write it; used in errors.
    label: its name below the given source; kept with every sample, so it does not depend on the machine.
    suffix: without packing, e.g. ".jsonl" for "a.jsonl.xz".  packing: ".gz", ".xz", ".zst" or "".
    outright: whether the source named this very file.
    """

    name: str
    label: str
    path: str
    suffix: str
    packing: str
    filesystem: Any
    outright: bool


def listed(sources: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """One source, or folder, need not be a list; several may be what can be asked but once, as of `Path.glob`."""
    return [sources] if isinstance(sources, str | Path) else list(sources)


def find_files(
    sources: Iterable[str | Path], suffixes: Iterable[str], left_out: Counter[str] | None = None
) -> list[InputFile]:
    """The files meant by `sources`: files, folders (searched recursively) and globs, in a stable order.

    A folder or glob gives its files with one of `suffixes`; a file named outright must have one.
    left_out: here the other files are counted, "... files" of each ending, and `LINKS` within a folder or glob.
    Raises DataError for a source that does not exist, has an unknown suffix or contains nothing readable.
    """
    named = listed(sources)
    if not named:
        raise DataError("no input was named. Give at least one file, folder, glob or URL.")
    if not all(map(str, named)):  # of a shell's variable that is not set; it would be the current folder
        raise DataError(
            "the name of an input is empty. Give a file, folder, glob or URL; the current folder is '.'."
        )
    known = tuple(suffixes)
    left_out = Counter() if left_out is None else left_out
    found = [file for source in named for file in _expand(str(source), known, left_out)]
    seen: dict[Any, str] = {}
    for file in found:
        _require_regular(file.name, file.path, file.filesystem)
        # A local file has many names: a/./b, a//b, links. Two archives have files of one path.
        place = os.path.realpath(file.path) if is_local(file.filesystem) else (file.filesystem, file.path)
        if place in seen:
            raise DataError(
                f"{file.name} is named twice in the inputs (it is the same file as {seen[place]}); its documents "
                "would count double. Name it once."
            )
        seen[place] = file.name
    return found


def _require_regular(name: str, path: str, filesystem: Any) -> None:
    """DataError for a local pipe, socket or device: reading one may wait for ever."""
    if is_local(filesystem) and os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{name} is a pipe, socket or device, not a file. Write what comes out of it to one.")


def _expand(source: str, suffixes: tuple[str, ...], left_out: Counter[str]) -> list[InputFile]:
    remote = over_http(source)
    try:
        if os.path.exists(source):  # also where the name looks like something else: "a::b.txt"
            filesystem, path = LocalFileSystem(), make_path_posix(source).rstrip("/") or "/"
        else:
            filesystem, path = file_system(source)
        if remote and "*" not in path.partition("?")[0]:  # folders and other patterns mean nothing over http
            return [_named(source, path, filesystem, suffixes)]
        if not remote and filesystem.isfile(path):
            return [_named(source, path, filesystem, suffixes)]
        if filesystem.isdir(path):
            below = _files_below(path) if is_local(filesystem) else filesystem.find(path)
            paths, base = sorted(below), path.rstrip("/") + "/"
        elif any(mark in path for mark in "*?["):
            # Not by isfile(), which over http says no whatever went wrong.
            found = insist(partial(filesystem.glob, path, detail=True), source)
            paths = sorted(p for p, info in found.items() if _is_file(p, info))
            base = path[: path.rfind("/", 0, min(path.find(m) for m in "*?[" if m in path)) + 1]
        else:
            _require_regular(source, path, filesystem)
            raise DataError(f"{source} does not exist. Check the name.")
    except DataError:
        raise
    except Exception as e:  # a file system driver may raise anything: bad scheme, credentials, network
        raise DataError(f"cannot look into {source}: {describe(e)}.") from e
    before, behind = ("", "") if remote else _around(source)
    files = [
        _input_file(f"{before}{p}{behind}", p.removeprefix(base), p, filesystem)
        for p in paths
        if not any(part.startswith(".") for part in p.removeprefix(base).split("/"))
    ]
    known = [file for file in files if file.suffix in suffixes]
    left_out.update(_kind(file) for file in files if file.suffix not in suffixes)
    if not known:
        raise DataError(
            f"{source} has no file with a known ending ({', '.join(suffixes)}; each also with "
            f"{', '.join(PACKED)}). Check the name, or convert the files."
        )
    return _once(known, left_out) if is_local(filesystem) else known


def _is_file(path: str, info: dict[str, Any]) -> bool:
    """Of what a pattern found, where a local link is of no type, whatever it leads to; to nothing, it is no file."""
    return info["type"] == "file" or (info.get("islink", False) and os.path.isfile(path))


def _once(files: list[InputFile], left_out: Counter[str]) -> list[InputFile]:
    """The files of one folder or pattern without links to others of them, which nobody could name but once."""
    links = {file.path for file in files if os.path.islink(file.path)}
    seen = {os.path.realpath(file.path) for file in files if links and file.path not in links}
    kept = []
    for file in files:
        if file.path in links:
            if (place := os.path.realpath(file.path)) in seen:
                left_out[LINKS] += 1
                continue
            seen.add(place)
        kept.append(file)
    return kept


def _around(source: str) -> tuple[str, str]:
    """What an address has before and behind its path: "zip://sub::all.zip" -> "zip://", "::all.zip"."""
    protocol, mark, rest = source.partition("://")
    if not mark:
        return "", ""
    _, chain, archive = rest.partition("::")
    return protocol + mark, chain + archive


def _kind(file: InputFile) -> str:
    return f"{file.suffix}{file.packing} files" if file.suffix or file.packing else "files without an ending"


def _files_below(root: str) -> list[str]:
    """All files in a local folder but those in hidden folders; links to folders are followed, each folder once.

    Folders come before links to them, so a link inside the tree changes no label, and a loop of links ends.
    """
    found: list[str] = []
    seen: set[str] = set()
    starts = [root]
    for start in starts:  # grows by the links that are found
        for folder, folders, names in os.walk(start, onerror=_refuse):
            place = os.path.realpath(folder)
            if place in seen:
                folders.clear()
                continue
            seen.add(place)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [os.path.join(folder, name) for name in names]
            inner = (os.path.join(folder, name) for name in folders)
            starts += [path for path in inner if os.path.islink(path)]
    return found


def _refuse(e: OSError) -> None:
    """What `os.walk` would pass over: a part of the data would be missing without a word."""
    raise DataError(
        f"{e.filename} cannot be read: {describe(e)}. Allow it, or name the files and folders beside it one by one."
    )


def _named(source: str, path: str, filesystem: Any, suffixes: tuple[str, ...]) -> InputFile:
    bare = path.split("?", 1)[0] if over_http(source) else path
    file = _input_file(source, bare.rsplit("/", 1)[-1], path, filesystem, outright=True)
    if file.suffix not in suffixes:
        raise DataError(
            f"{file.name}: unknown ending {file.suffix or file.label!r}. Expected one of {', '.join(suffixes)}, "
            f"each also with {', '.join(PACKED)}."
        )
    return file


def _input_file(name: str, label: str, path: str, filesystem: Any, outright: bool = False) -> InputFile:
    stem = label.rsplit("/", 1)[-1].lower()
    packing = next((p for p in PACKED if stem.endswith(p)), "")
    stem = stem.removesuffix(packing)
    suffix = "-ubyte" if stem.endswith("-ubyte") else stem[stem.rfind(".") :] if "." in stem else ""
    # A name on disk need not be UTF-8; what stands for its other bytes could not be written into a shard.
    label = label.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return InputFile(name, label, path, suffix, packing, filesystem, outright)
