"""How what is at an address is opened (by fsspec) without waiting for ever, and read to its end."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import fsspec
from fsspec.archive import AbstractArchiveFileSystem

from glomo_dist.data.storage.patience import Patience, insist
from glomo_dist.runtime.errors import DataError

_HTTP = ("http", "https")
STALL = 30.0  # seconds without a byte after which a connection is given up
_BLOCK = 16 << 20  # bytes asked for in one request, where the protocol has requests for parts
# By which versions of a file are told apart.
_SIGNS = {"size", "etag", "last-modified", "lastmodified", "generation"}
_KEPT: ContextVar[dict[tuple[str, str], Any] | None] = ContextVar("archives", default=None)


def over_http(address: str) -> bool:
    """Whether the address is one of http or https; a file or folder named "http" is not."""
    return address.startswith(tuple(f"{name}://" for name in _HTTP))


def file_system(address: str, *, tried_again: bool = False) -> tuple[Any, str]:
    """The file system of fsspec for an address, and the path in it. May raise anything.

    tried_again: by the caller, when something fails, so that neither this nor the driver of S3 need.
    """
    options: dict[str, Any] = {}
    if over_http(address):
        options = _http_options()
    elif address.startswith("s3://"):
        limits: dict[str, Any] = {"connect_timeout": STALL, "read_timeout": STALL}
        options = {"config_kwargs": limits | ({"retries": {"max_attempts": 1}} if tried_again else {})}
    elif "::" in address:
        return _in_archive(address, tried_again)
    filesystem, path = fsspec.core.url_to_fs(address, **options)
    return filesystem, path


def _in_archive(address: str, tried_again: bool) -> tuple[Any, str]:
    """An archive at an address is opened here, and what is in it is listed."""
    within, _, archive = address.partition("::")
    kept, key = _KEPT.get(), (within.partition("://")[0], archive)
    if kept is not None and key in kept:
        return kept[key], kept[key]._strip_protocol(within)
    options = {name: _http_options() for name in _HTTP if f"::{name}://" in address}
    if archive.partition("?")[0].endswith(".tgz"):  # an ending that fsspec does not know
        options["tar"] = {"compression": "gzip"}
    opened = partial(fsspec.core.url_to_fs, address, **options)
    filesystem, path = opened() if tried_again else insist(opened, address)
    if kept is not None and isinstance(filesystem, AbstractArchiveFileSystem):
        kept[key] = filesystem
    return filesystem, path


@contextlib.contextmanager
def archives_kept_open() -> Iterator[None]:
    """Within it an archive is opened once, not at every look into it: that lists all its members, and a packed tar
    file is unpacked for that from end to end."""
    before = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(before)


def _http_options() -> dict[str, Any]:
    import aiohttp  # slow to import

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
    return {"client_kwargs": {"timeout": timeout}}


def open_in_order(filesystem: Any, path: str, start: int = 0) -> Any:
    """The file, to be read front to back. May raise anything.

    start: byte to begin at, where the server has parts.

    Of HTTP the whole is asked for in one request: not every server has parts of a file, or says how long it is.
    """
    if _is_http(filesystem):
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        return filesystem.open(path, block_size=0, size=1, headers=headers)  # any size: else it is asked for
    file = filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
    if start:
        file.seek(start)
    return file


def is_local(filesystem: Any) -> bool:
    return filesystem.protocol in ("file", ("file", "local"))


def _is_http(filesystem: Any) -> bool:
    return "http" in filesystem.protocol


class Unbroken:
    """The bytes of a file at an address, front to back, as if no connection ever broke.

    After a failure that may pass (see `Patience.insist`, also for the errors) reading goes on at the byte reached. A
    server without parts of a file is read from the beginning, and what came before is skipped. Raises DataError where
    the file is not the same any more. name: of the file, for what is said.
    """

    def __init__(self, filesystem: Any, path: str, name: str) -> None:
        self._filesystem, self._path, self._name = filesystem, path, name
        self._patience = Patience(name)
        self._file: Any = None
        self._signs: dict[str, Any] = {}
        self._in_parts = True
        self._patience.insist(self._open)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end of the file."""
        return self._patience.insist(partial(self._read, size))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, size: int) -> bytes:
        if self._file is None:
            self._open()
        try:
            block: bytes = self._file.read(size)
            done, whole = self._patience.done, self._signs.get("size")
            if size and not block and whole is not None and done < whole:
                raise ConnectionError(f"{done:,} of {whole:,} bytes came")
        except BaseException:
            self._forget()
            raise
        if block:
            self._patience.came(len(block))
        return block

    def _open(self) -> None:
        done = self._patience.done
        start = done if self._in_parts else 0
        try:
            self._file = open_in_order(self._filesystem, self._path, start=start)
        except Exception as e:
            if start and getattr(e, "status", None) == 416:  # no such part: the whole will tell
                self._in_parts = False
                return self._open()
            raise
        try:
            if _is_http(self._filesystem):
                start, signs = _answered(self._file.r, start)
            else:
                details = getattr(self._file, "details", None) or {}
                signs = {key.lower(): details[key] for key in details if key.lower() in _SIGNS}
            self._compare(signs)
            self._skip(done - start)
        except BaseException:
            self._forget()
            raise
        return None

    def _compare(self, signs: dict[str, Any]) -> None:
        for key, before in self._signs.items():
            if signs.get(key, before) != before:
                raise self._changed(f"{key} {before}, now {signs[key]}")
        self._signs = signs | self._signs
        if signs.get("packing", "identity") != "identity":
            self._in_parts = False  # they would be of the packed bytes, and aiohttp gives the unpacked

    def _skip(self, size: int) -> None:
        while size:
            block = self._file.read(min(size, _BLOCK))
            if not block:
                raise self._changed("it is shorter")
            size -= len(block)

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{self._name} changed while it was read ({what}), so that going on would mix two versions. Start again."
        )

    def _forget(self) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(Exception):
            file.close()


def _answered(response: Any, asked: int) -> tuple[int, dict[str, Any]]:
    """The byte of the file at which an HTTP answer begins (`asked`, or 0), and the signs of the file's version."""
    headers = response.headers
    signs: dict[str, Any] = {key: headers[key] for key in ("etag", "last-modified") if key in headers}
    signs["packing"] = headers.get("Content-Encoding") or "identity"
    start, size = 0, headers.get("Content-Length")
    if response.status == 206:
        part = re.match(rf"bytes ({asked})-\d+/(\d+|\*)$", headers.get("Content-Range", ""))
        if part is None:
            raise OSError(f"asked from byte {asked}, the server gives {headers.get('Content-Range')}")
        start, size = asked, part[2]
    if size and size.isdigit() and signs["packing"] == "identity":
        signs["size"] = int(size)
    return start, signs
