"""Words of messages."""

from __future__ import annotations

# All but tab and new line, and those that turn the direction of writing.
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in _CONTROLS}


def printable(text: str) -> str:
    """`text`, control characters written out as `\\r`: what a file holds must not move a terminal's cursor."""
    return text.translate(_ESCAPES)


def counted(count: int, one: str, more: str | None = None) -> str:
    """ "1 job", "2,000 jobs"; "1 job has", "2 jobs have".  more: for any number but one, where an s is not enough."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
