"""Where shards lie: a local folder, or an address (http, https, s3, ...) read through fsspec with retries."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, cast

from glomo_dist.data.storage.patience import asked_to_wait, status_passes
from glomo_dist.data.storage.remote import file_system, open_in_order
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError, ShardError, describe
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.secrets import shown

T = TypeVar("T")

SCHEMES = ("http", "https", "s3", "gs", "gcs", "abfs", "az", "memory")
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0  # seconds


@dataclass(frozen=True)
class Address:
    """A remote folder. `address / name` is a file in it; a query (`?token=...`) stays at the end.

    As text it has no query and no password, so that it can be shown and stored.
    """

    url: str

    def __truediv__(self, name: str) -> Address:
        base, mark, query = self.url.partition("?")
        return Address(f"{base.rstrip('/')}/{name}{mark}{query}")

    def __str__(self) -> str:
        return shown(self.url.partition("?")[0])

    def resolve(self) -> Address:
        """As of a path: what it is from any folder."""
        return self


Place: TypeAlias = Path | Address


def place(text: str | Path | Address) -> Place:
    """A local folder or an address; ConfigError for what is neither (`pipe:`, chained file systems, ...)."""
    if not isinstance(text, str):
        return text
    scheme, colon, _ = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme) or os.path.exists(text):
        return Path(text)
    if scheme == "file" and text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if scheme not in SCHEMES or not text.startswith(f"{scheme}://") or "::" in text:
        raise ConfigError(
            f"{text}: not a place for shards. Give a folder, or an address that begins with one of "
            f"{', '.join(f'{s}://' for s in SCHEMES)}; nothing else is opened or executed."
        )
    return Address(text)


class Source(Protocol):
    """A file being read front to back."""

    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


def open_place(file: Place) -> Source:
    """The bytes of `file`. May raise anything."""
    if isinstance(file, Path):
        return open(file, "rb")
    filesystem, path = file_system(file.url, tried_again=True)
    return cast(Source, open_in_order(filesystem, path))


def read_place(file: Place, retry_seconds: float) -> bytes:
    """All bytes of a small file (index, tokenizer). Raises DataError naming it."""

    def attempt(until: float) -> bytes:
        source = open_place(file)
        try:
            parts = []
            while part := source.read(1 << 20):
                parts.append(part)
                in_time(until)
            return b"".join(parts)
        finally:
            source.close()

    return attempts(attempt, file, retry_seconds)


def exists(file: Place) -> bool:
    """Whether `file` is there; True also where that cannot be found out, as reading it will tell why."""
    if isinstance(file, Path):
        try:
            file.stat()
        except OSError as e:
            return not isinstance(e, (FileNotFoundError, NotADirectoryError))
        return True
    try:
        open_place(file).close()
    except FileNotFoundError:
        return False
    except Exception:  # any other trouble is reported, and tried again, by those who read the file
        return True
    return True


class OutOfTime(TimeoutError):
    """An attempt was cut short because the time for all attempts is over."""


def in_time(until: float) -> None:
    """Raise OutOfTime after the monotonic time `until`: a server may send a byte now and then for ever."""
    if time.monotonic() > until:
        raise OutOfTime("not complete in the time given")


# Beside `patience.Patience`, as the two promise different things (docs/data.md). A shard is small, and bad when it
# cannot be had in time (`max_bad_shards`): a budget of time, of which each attempt knows the end. Wrong bytes, which
# the index tells from right ones, are tried again, and so is a host that never answered. An input may take hours, and
# nothing says beforehand what is in it: tries are counted, anew whenever bytes came, reading goes on where it was,
# and what looks like a wrong address ends at once. How answers of a server are judged is common to both.
def attempts(attempt: Callable[[float], T], file: Place, retry_seconds: float) -> T:
    """`attempt(until)` until it succeeds; `until`, in monotonic seconds, is `retry_seconds` from now.

    What may pass (no connection, a server in trouble, cut or wrong bytes) is tried again at an address, after a
    wait that doubles, times a random number so that many readers do not come back together; a server that asks for
    more gets it. What is final (no such file, no permission), or local, is not. Raises ShardError (as `attempt` did)
    or DataError, naming `file` and what was wrong: where the time ended in the middle of an attempt, what was wrong
    with the attempt before it. Another GlomoError of `attempt` is raised as it is: `file` is not at fault.
    """
    until = time.monotonic() + retry_seconds
    wait, number = _FIRST_WAIT, 0
    fault: Exception | None = None
    while True:
        number += 1
        try:
            return attempt(until)
        except Exception as e:  # a file system driver may raise anything
            if isinstance(e, GlomoError) and not isinstance(e, DataError):
                raise
            if fault is None or not isinstance(e, OutOfTime):
                fault = e
            pause = max(min(wait, _LONGEST_WAIT) * random.uniform(0.5, 1.0), asked_to_wait(e))
            if isinstance(file, Path) or _final(fault) or time.monotonic() + pause > until:
                tried = "" if number == 1 else f" ({number} attempts in {retry_seconds:g} s)"
                if isinstance(fault, DataError):
                    raise type(fault)(f"{fault}{tried}") from None
                if isinstance(fault, FileNotFoundError):
                    raise DataError(f"{file} does not exist.") from None
                raise DataError(f"{file} cannot be read{tried}: {describe(fault)}.") from fault
            say(f"WARNING: {file}: {describe(fault)}; attempt {number}, again in {pause:.1f} s")
            fault.__traceback__ = None  # its frames hold what the attempt had opened and read
            time.sleep(pause)
            wait *= 2


def _final(e: Exception) -> bool:
    if isinstance(e, ShardError):  # wrong bytes: they may have been damaged on the way
        return False
    if isinstance(e, (FileNotFoundError, PermissionError, IsADirectoryError, DataError, ImportError)):
        return True
    status = getattr(e, "status", None)
    return isinstance(status, int) and status >= 400 and not status_passes(status)
