"""Words of messages."""

from __future__ import annotations


def counted(count: int, one: str, more: str | None = None) -> str:
    """ "1 job", "2,000 jobs"; "1 job has", "2 jobs have".  more: for any number but one, where an s is not enough."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
