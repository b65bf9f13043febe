"""Trying again what fails for a while at an address: a connection that breaks, a server in trouble."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import sys
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.progress import say

T = TypeVar("T")

WAITS = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each further try
LONGEST_ASKED = 300.0  # seconds that a server may ask for
_PASSING = {408, 425, 429}  # of the HTTP codes 4xx, those worth another try
_PASSING_ERRORS = {errno.ENETUNREACH, errno.EHOSTUNREACH}
_PASSING_ERRORS |= {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY)}  # so s3fs names 503 and 500
# What fsspec's caches have of a file when the connection breaks they take for the whole at the next try.
_KEPT = re.compile(r"(^|::)(simplecache|filecache|blockcache|cached)::")
_reached: set[str] = set()  # hosts that have answered this process


class Patience:
    """The tries of reading one thing at an address.

    name: the address as the user gave it, for what is said.  done: bytes that came so far.
    """

    def __init__(self, name: str) -> None:
        self.done = 0
        self._name, self._failed = name, 0
        self._host = name.rpartition("::")[2].partition("://")[2].partition("/")[0]
        self._waits = () if _KEPT.search(name) else WAITS

    def came(self, size: int) -> None:
        """`size` new bytes came (0: an answer without any), so that the tries are counted anew."""
        self.done += size
        self._failed = 0
        _reached.add(self._host)

    def insist(self, attempt: Callable[[], T]) -> T:
        """`attempt()` until it succeeds, with growing waits, each of them said.

        Raises what `attempt` raises where that will not pass: no such file, no permission, a bad certificate, a host
        that cannot be connected to and never could. Raises DataError naming the address, what is wrong and how often
        it was tried, when it failed len(WAITS) + 1 times with no byte between.
        """
        while True:
            try:
                return attempt()
            except Exception as e:  # a file system driver may raise anything
                self._wait(e)

    def _wait(self, e: Exception) -> None:
        if not self._waits or not _passes(e, self._host in _reached):
            raise e
        after = f" after {_size(self.done)}" if self.done else ""
        if self._failed == len(self._waits):
            raise DataError(
                f"{self._name} cannot be read: {describe(e)} ({self._failed + 1} tries{after}). Try again later."
            ) from e
        pause = max(self._waits[self._failed], asked_to_wait(e))
        self._failed += 1
        again = f"trying again in {pause:g} s ({self._failed} of {len(self._waits)})"
        say(f"{self._name}: {_what(e)}{after}, {again}")
        e.__traceback__ = None  # its frames hold what the attempt had opened and read
        time.sleep(pause)


def insist(attempt: Callable[[], T], name: str) -> T:
    """`attempt()`, which reads the whole of something at the address `name`, with `Patience`."""
    patience = Patience(name)
    found = patience.insist(attempt)
    patience.came(0)
    return found


def status_passes(status: int) -> bool:
    """Whether an error of this HTTP status may be gone at the next try."""
    return status >= 500 or status in _PASSING


def asked_to_wait(e: Exception) -> float:
    """Seconds until a server that refused wants to be asked again (`Retry-After`, RFC 9110, section 10.2.3); 0 where
    it did not say, at most LONGEST_ASKED."""
    asked = (getattr(e, "headers", None) or {}).get("Retry-After", "")
    if re.fullmatch(r"\s*\d{1,9}\s*", asked):
        seconds = float(asked)
    else:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, OverflowError):  # neither seconds nor a date
            return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED)


def _passes(e: Exception, reached: bool) -> bool:
    if isinstance(e, (FileNotFoundError, PermissionError)):
        return False
    if isinstance(status := getattr(e, "status", None), int):
        return status_passes(status)
    import aiohttp  # slow to import

    if isinstance(e, aiohttp.ClientConnectorCertificateError):
        return False
    unreached = (aiohttp.ClientConnectorError, ConnectionRefusedError, socket.gaierror)
    if isinstance(e, (*unreached, *_botocore("EndpointConnectionError"))):
        return reached  # else the address may be wrong
    broken = (TimeoutError, asyncio.TimeoutError, ConnectionError, aiohttp.ClientConnectionError)
    if isinstance(e, (*broken, aiohttp.ClientPayloadError, *_botocore("ConnectionError", "HTTPClientError"))):
        return True
    return isinstance(e, OSError) and e.errno in _PASSING_ERRORS


def _botocore(*names: str) -> list[type[Exception]]:
    """Errors of S3's driver, if it is in use."""
    errors = sys.modules.get("botocore.exceptions")
    return [getattr(errors, name) for name in names] if errors else []


def _what(e: Exception) -> str:
    if isinstance(status := getattr(e, "status", None), int):
        return f"the server answers {status}"
    return "no answer in time" if isinstance(e, (TimeoutError, asyncio.TimeoutError)) else "connection lost"


def _size(done: int) -> str:
    return f"{done / 1e6:.1f} MB" if done >= 1e6 else f"{done:,} bytes"
