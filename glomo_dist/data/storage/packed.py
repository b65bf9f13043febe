"""The unpacked bytes of input files, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from glomo_dist.data.storage.files import InputFile
from glomo_dist.data.storage.remote import Unbroken, is_local, open_in_order
from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.files import cannot_write

_DAMAGE = (EOFError, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile, zlib.error)


def open_stream(file: InputFile) -> io.BufferedReader:
    """The unpacked bytes of `file`, read front to back; every failure to read them is a DataError naming it."""
    return io.BufferedReader(cast(io.RawIOBase, _Guarded(file)), 1 << 20)


def open_seekable(file: InputFile) -> IO[bytes]:
    """The unpacked bytes of `file` with random access; what is packed or remote goes to a temporary file."""
    if not file.packing and is_local(file.filesystem):
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
        if isinstance(e, FileNotFoundError):
            return DataError(f"{self._file.name} does not exist. Check the name.")
        hint = "It is cut short or damaged: copy it again." if isinstance(e, _DAMAGE) else "Check the file."
        return DataError(f"{self._file.name} cannot be read: {describe(e)}. {hint}")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._stream.read(len(buffer))
        except DataError:  # after many tries: it names the file
            raise
        except Exception as e:  # whatever the driver or unpacker raises, the person needs the file's name
            raise self._error(e) from e
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_raw"):
            self._raw.close()
        super().close()


def _open(file: InputFile) -> Any:
    if is_local(file.filesystem):
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
