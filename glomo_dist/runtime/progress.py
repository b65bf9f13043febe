"""One progress bar for the whole program, readable in a terminal and in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from glomo_dist.runtime.secrets import shown

T = TypeVar("T")


def bar(iterable: Iterable[T] | None = None, **options: Any) -> tqdm[T]:
    """A `tqdm` bar on stderr; in a log (no terminal) it prints at most one line in ten seconds.

    options: those of `tqdm.tqdm`, e.g. total, desc, unit, initial, disable.
    """
    terminal = sys.stderr.isatty()
    options.setdefault("mininterval", 0.2 if terminal else 10.0)
    options.setdefault("dynamic_ncols", terminal)
    options.setdefault("file", sys.stderr)
    return tqdm(iterable, **options)


def say(message: str) -> None:
    """One line to the person watching, without breaking a bar, and without what is secret in an address."""
    tqdm.write(shown(message), file=sys.stderr)
    sys.stderr.flush()
