"""Errors that a user can act on.

Each says what was expected, what came, which file (line, shard, key) and what to do. The command line prints
the message alone and exits with the error's code; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from glomo_dist.runtime.secrets import shown
from glomo_dist.runtime.words import printable


class GlomoError(Exception):
    """Base of every error caused by input, configuration or surroundings rather than by a bug.

    exit_code: of the command line.  everywhere: all ranks of a run raise this error, not only the one it came from.
    """

    exit_code = 2
    everywhere = False

    def __str__(self) -> str:
        # Messages name inputs and cite files as they are, and end up in terminals and logs.
        return printable(shown(super().__str__()))


class ConfigError(GlomoError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(GlomoError):
    """An input file, document, image or label cannot be used."""


class ShardError(DataError):
    """A shard or its index is damaged, missing or of another format version."""


class CheckpointError(GlomoError):
    """A checkpoint or exported model is damaged, missing or does not fit what it is used with."""


class OtherVersion(CheckpointError):
    """A checkpoint or run of another format version: whole, and read by another version of this program."""


class Interrupted(GlomoError):
    """A signal asked a run or an evaluation to stop: what was done is kept, and the same command continues."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class RankDied(GlomoError):
    """A rank of a run, or its reader, was killed or crashed; the same command continues from the last checkpoint."""

    exit_code = 70


class RankTooLarge(RankDied):
    """A rank had not the memory that its share of a step takes."""


class RankHung(RankDied):
    """The watchdog ended a run that made no progress; the same command continues from the last checkpoint."""

    exit_code = 71


def suggest(name: object, known: Iterable[str]) -> str:
    """A sentence ending for "unknown name" errors: the near names if there are any, then the full list."""
    options = sorted(known)
    near = difflib.get_close_matches(str(name), options, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"{hint} Known: {', '.join(options)}."


def lacks_memory(e: Exception) -> bool:
    """Whether it was memory that was missing. PyTorch says so in a RuntimeError, the system in an OSError."""
    return isinstance(e, MemoryError) or any(
        words in str(e) for words in ("allocate memory", "out of memory")
    )


def describe(e: BaseException) -> str:
    """One line for a foreign exception."""
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    text = " ".join(str(e).split()).rstrip(".")  # whoever cites it ends the sentence
    return f"{type(e).__name__}: {text}" if text else type(e).__name__
