"""One progress bar for the whole program, readable in a terminal and in a log file.

What stderr cannot take is dropped: that nobody reads it any more, or that its disk is full, ends no work of hours.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from glomo_dist.runtime.secrets import shown
from glomo_dist.runtime.words import printable

T = TypeVar("T")


class _Stderr:
    """sys.stderr, whatever it is at the time, also nothing, as a file whose writing never fails."""

    def write(self, text: str) -> int:
        with _dropping():
            self._stream().write(text)
        return len(text)

    def flush(self) -> None:
        with _dropping():
            self._stream().flush()

    def _stream(self) -> TextIO:
        return _nowhere() if sys.stderr is None else sys.stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


@functools.cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # open for as long as the process


@contextlib.contextmanager
def _dropping() -> Iterator[None]:
    """An OSError of the block ends with an empty buffer.

    What is held back would be tried again at the end of the process, whose exit code would then be 120.
    """
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            number = sys.stderr.fileno()
            there, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, number)
                sys.stderr.flush()
            finally:
                os.dup2(there, number)
                os.close(there)
                os.close(nowhere)


_STDERR = _Stderr()  # one for all, by which tqdm knows bars that a line would break


class _Bar(tqdm):  # type: ignore[misc]  # it has no types
    """On a clock that nobody sets: by the time of day it would stand still until that is where it was before."""

    _time = property(lambda self: time.monotonic, lambda self, _: None)


def bar(iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """A `tqdm` bar on stderr; in a log (no terminal) it prints at most one line in ten seconds.

    options: those of `tqdm.tqdm`, e.g. total, desc, unit, initial, disable.
    """
    terminal = _STDERR.isatty()
    options.setdefault("mininterval", 0.2 if terminal else 10.0)
    options.setdefault("dynamic_ncols", terminal)
    options.setdefault("miniters", 1)  # else a thread of tqdm compares its time of day with ours
    options.setdefault("file", _STDERR)
    return _Bar(iterable, **options)


def say(message: str) -> None:
    """One line to the person watching, without breaking a bar, and without what is secret in an address."""
    tqdm.write(printable(shown(message)), file=_STDERR)
    _STDERR.flush()
