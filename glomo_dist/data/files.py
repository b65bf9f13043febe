"""Finding and opening input files: local or remote (fsspec), plain or packed, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import zstandard
from fsspec.implementations.local import LocalFileSystem, make_path_posix

from glomo_dist.data.patience import insist
from glomo_dist.data.remote import Unbroken, file_system, open_in_order, over_http
from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.files import cannot_write

PACKED = (".gz", ".xz", ".zst")


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


def listed(sources: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """One source, or folder, need not be a list."""
    return [str(sources)] if isinstance(sources, str | Path) else sources


def find_files(
    sources: Sequence[str], suffixes: Iterable[str], left_out: Counter[str] | None = None
) -> list[InputFile]:
    """The files meant by `sources`: files, folders (searched recursively) and globs, in a stable order.

    A folder or glob gives its files with one of `suffixes`; a file named outright must have one.
    left_out: here the other files are counted, "... files" of each ending.
    Raises DataError for a source that does not exist, has an unknown suffix or contains nothing readable.
    """
    sources = listed(sources)
    if not sources:
        raise DataError("no input was named. Give at least one file, folder, glob or URL.")
    known = tuple(suffixes)
    left_out = Counter() if left_out is None else left_out
    found = [file for source in sources for file in _expand(str(source), known, left_out)]
    seen: dict[str, str] = {}
    for file in found:
        _require_regular(file.name, file.path, file.filesystem)
        # A local file has many names: a/./b, a//b, links.
        place = os.path.realpath(file.path) if _is_local(file.filesystem) else file.path
        if place in seen:
            raise DataError(
                f"{file.name} is named twice in the inputs (it is the same file as {seen[place]}); its documents "
                "would count double. Name it once."
            )
        seen[place] = file.name
    return found


def _require_regular(name: str, path: str, filesystem: Any) -> None:
    """DataError for a local pipe, socket or device: reading one may wait for ever."""
    if _is_local(filesystem) and os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{name} is a pipe, socket or device, not a file. Write what comes out of it to one.")


def _is_local(filesystem: Any) -> bool:
    return filesystem.protocol in ("file", ("file", "local"))


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
            below = _files_below(path) if _is_local(filesystem) else filesystem.find(path)
            paths, base = sorted(below), path.rstrip("/") + "/"
        elif any(mark in source for mark in "*?["):
            # Not by isfile(), which over http says no whatever went wrong.
            found = insist(partial(filesystem.glob, path, detail=True), source)
            paths = sorted(p for p, info in found.items() if info["type"] == "file")
            base = path[: path.rfind("/", 0, min(path.find(m) for m in "*?[" if m in path)) + 1]
        else:
            _require_regular(source, path, filesystem)
            raise DataError(f"{source} does not exist. Check the name.")
    except (DataError, KeyboardInterrupt):
        raise
    except Exception as e:  # a file system driver may raise anything: bad scheme, credentials, network
        raise DataError(f"cannot look into {source}: {describe(e)}.") from e
    protocol = source.split("://", 1)[0] + "://" if "://" in source and not remote else ""
    files = [
        _describe(protocol + p, p.removeprefix(base), p, filesystem)
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
    return known


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
        for folder, folders, names in os.walk(start):
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


def _named(source: str, path: str, filesystem: Any, suffixes: tuple[str, ...]) -> InputFile:
    bare = path.split("?", 1)[0] if over_http(source) else path
    file = _describe(source, bare.rsplit("/", 1)[-1], path, filesystem, outright=True)
    if file.suffix not in suffixes:
        raise DataError(
            f"{file.name}: unknown ending {file.suffix or file.label!r}. Expected one of {', '.join(suffixes)}, "
            f"each also with {', '.join(PACKED)}."
        )
    return file


def _describe(name: str, label: str, path: str, filesystem: Any, outright: bool = False) -> InputFile:
    stem = label.rsplit("/", 1)[-1].lower()
    packing = next((p for p in PACKED if stem.endswith(p)), "")
    stem = stem.removesuffix(packing)
    suffix = "-ubyte" if stem.endswith("-ubyte") else stem[stem.rfind(".") :] if "." in stem else ""
    # A name on disk need not be UTF-8; what stands for its other bytes could not be written into a shard.
    label = label.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return InputFile(name, label, path, suffix, packing, filesystem, outright)


def open_stream(file: InputFile) -> io.BufferedReader:
    """The unpacked bytes of `file`, read front to back; every failure to read them is a DataError naming it."""
    return io.BufferedReader(cast(io.RawIOBase, _Guarded(file)), 1 << 20)


def open_seekable(file: InputFile) -> IO[bytes]:
    """The unpacked bytes of `file` with random access; what is packed or remote goes to a temporary file."""
    if not file.packing and _is_local(file.filesystem):
        try:
            return open(file.path, "rb")
        except OSError as e:
            raise DataError(f"{file.name} cannot be read: {describe(e)}.") from e
    with open_stream(file) as stream:
        try:
            copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            shutil.copyfileobj(stream, copy, 1 << 20)
            copy.seek(0)
        except OSError as e:  # those of reading are DataErrors by now
            # not gettempdir(): it looks for one that can be written
            folder = Path(tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp")
            raise cannot_write(folder, e, "Free space, or set TMPDIR to another folder.") from e
    return copy


class _Guarded(io.RawIOBase):
    """Raw stream over opener, network and unpacker, whose failures name the file."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        try:
            self._raw = _open(file)
            self._stream = _unpack(self._raw, file.packing)
        except DataError:
            raise
        except Exception as e:
            raise self._error(e) from e

    def _error(self, e: Exception) -> DataError:
        hint = "It is cut short or damaged: copy it again." if isinstance(e, _DAMAGE) else "Check the file."
        return DataError(f"{self._file.name} cannot be read: {describe(e)}. {hint}")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._stream.read(len(buffer))
        except DataError:  # after many tries: it names the file
            raise
        except Exception as e:  # whatever the driver or unpacker raises, it is to name the file
            raise self._error(e) from e
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_raw"):
            self._raw.close()
        super().close()


def _open(file: InputFile) -> Any:
    if _is_local(file.filesystem):
        return open_in_order(file.filesystem, file.path)
    return Unbroken(file.filesystem, file.path, file.name)


def _unpack(raw: Any, packing: str) -> Any:
    if packing == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if packing == ".xz":
        return _Frames(raw, lzma.LZMADecompressor, padding=4)
    if packing == ".zst":
        return _Frames(raw, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj)
    return raw


class _Frames:
    """Zstandard frames or xz streams end to end.

    The libraries' own readers lose data without a word: zstandard's takes a cut file for a complete one; lzma's stops
    where no stream begins, be it damage or the zero bytes that may stand between two.

    begin: makes what unpacks one frame.  padding: zero bytes after a frame come in multiples of this (0: none may).
    """

    def __init__(self, raw: Any, begin: Callable[[], Any], padding: int = 0) -> None:
        self._raw, self._begin, self._padding = raw, begin, padding
        self._frame, self._open, self._first = begin(), False, True
        self._zeros, self._left = 0, memoryview(b"")  # after the frame; unpacked and not read yet

    def read(self, size: int) -> memoryview:
        while not self._left:
            block = b""
            if self._frame.eof:
                block = self._frame.unused_data
                self._frame, self._open, self._first = self._begin(), False, False
            block = block or self._raw.read(1 << 15)  # a thousand times as much may be in it
            if not block:
                if self._open:
                    raise EOFError("compressed file ended inside a frame")
                self._check_padding()
                return self._left
            if self._padding and not self._open and not self._first:
                behind = block.lstrip(b"\0")
                self._zeros += len(block) - len(behind)
                block = behind
                if not block:
                    continue
                self._check_padding()
                self._zeros = 0
            self._open = True
            self._left = memoryview(self._frame.decompress(block))
        part, self._left = self._left[:size], self._left[size:]
        return part

    def _check_padding(self) -> None:
        if self._padding and self._zeros % self._padding:
            raise EOFError(f"{self._zeros} zero bytes after a frame, not a multiple of {self._padding}")


_DAMAGE = (EOFError, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)
