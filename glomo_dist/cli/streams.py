"""The standard streams as a shell may hand them over: closed, full, without our signs, or read by nobody."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys

_PLAIN = {"±": "+-", "−": "-", "–": "-", "─": "-"}  # signs of the tables
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare() -> None:
    """Make what is printed reach its reader: to be called first, before the command is imported."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Each gets its own number again: otherwise the next file to be opened would get it, and the messages of
            # libraries and child processes would go into that file.
            # Like the real stderr it takes every character, also half a surrogate pair.
            stream = open(os.devnull, mode, errors="backslashreplace")  # noqa: SIM115 - open for as long as the process
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("glomo-plain", _plain)
        sys.stdout.reconfigure(errors="glomo-plain")
    # tyro itself asks stdout alone, and when it is imported
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that the encoding of stdout does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def give_up_unread() -> bool:
    """Whether nobody reads stdout or stderr any more (`glomo plan | head -1`); the rest then goes nowhere."""
    gone = [number for number in (1, 2) if _unread(number)]
    for number in gone:
        _give_up(number)
    return bool(gone)


def give_up_full(error: OSError) -> bool:
    """Whether `error` is that stdout takes no more (`glomo plan > file`, disk full); the rest then goes nowhere."""
    full = error.errno in _FULL and error.filename is None
    try:
        sys.stdout.flush()  # what was not taken is tried again, unless Python runs without buffers
    except OSError:
        full = True
    if full:
        _give_up(1)
    return full


def complain(message: str) -> None:
    """One line on stderr. Where it cannot be written (a terminal that is gone), the exit code alone has to tell."""
    try:
        print(message, file=sys.stderr)
    except OSError:
        _give_up(2)


def _give_up(number: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _unread(number: int) -> bool:
    poll = select.poll()
    poll.register(number, 0)  # errors are reported whatever is asked for
    return bool(poll.poll(0))
