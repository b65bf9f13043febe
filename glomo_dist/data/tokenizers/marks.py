"""Combining marks: accents, points and vowel signs that Unicode writes as characters of their own after a letter."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

_BEYOND_BMP = "\U00010000-\U0010ffff"
_JOINERS = "\u200c\u200d"  # within words of Persian, Sinhala, Bengali (UAX 29, WB4); elsewhere stray
_HANGUL_PARTS = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))  # second and third part of a syllable
# All marks are here; the planes between are not worth a look at a million characters.
_PLACES = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
_MANY = 1000  # marks of one letter: damage or mischief, and to put n of them in order takes n² steps


def composed(text: str) -> str:
    """Unicode's form NFC: an accent and its letter are one character where there is one, as most text has it.

    A character with more than 1,000 marks stays as it is.
    """
    if text.isascii():
        return text
    full = _full_step().match
    steps = range(0, len(text) - _MANY // 2, _MANY // 2)  # more than so many marks fill one step at least
    if not any(full(text, at) for at in steps):
        return unicodedata.normalize("NFC", text)
    groups = _groups().findall(text)
    return "".join(
        group if len(group) > 1 + _MANY else unicodedata.normalize("NFC", group) for group in groups
    )


def may_have_marks(text: str) -> bool:
    """Whether there is a mark or a joiner in the text, or a character of which it would take long to say."""
    return not text.isascii() and _some_mark().search(text) is not None


@cache
def mark() -> str:
    """A regular expression for one mark, or for a joiner that has more of its word after it.

    Marks beyond the first plane are many short ranges that `re` tries one after the other: only for characters there.
    """
    marks = _marks()
    first = _ranges(c for c in marks if c < 0x10000)
    one = f"[{first}]|(?=[{_BEYOND_BMP}])[{_ranges(c for c in marks if c >= 0x10000)}]"
    return rf"(?:{one}|[{_JOINERS}](?=[^\W_]|{one}))"


def origins(text: str) -> tuple[list[int], list[int]]:
    """Where each character of `composed(text.lower())` comes from: it was within text[start : end]."""
    starts: list[int] = []
    ends: list[int] = []
    for group in _groups().finditer(text):
        start, end = group.span()
        size = len(composed(group[0].lower()))
        if size == end - start:
            starts += range(start, end)
            ends += range(start + 1, end + 1)
        else:
            starts += [start] * size
            ends += [end] * size
    return starts, ends


@cache
def _marks() -> list[int]:
    return [c for c in _PLACES if unicodedata.category(chr(c)) in ("Mn", "Mc")]


@cache
def _some_mark() -> re.Pattern[str]:
    return re.compile(f"[{_ranges(c for c in _marks() if c < 0x10000)}{_JOINERS}{_BEYOND_BMP}]")


@cache
def _groups() -> re.Pattern[str]:
    """A character with all after it that may become one with it."""
    return re.compile(f".{_joining()}*", re.DOTALL)


@cache
def _full_step() -> re.Pattern[str]:
    return re.compile(f"{_joining()}{{{_MANY // 2}}}")


@cache
def _joining() -> str:
    """A regular expression for one character that may become one with that before it."""
    return f"[{_ranges(sorted([*_marks(), *_HANGUL_PARTS]))}]"


def _ranges(characters: Iterable[int]) -> str:
    """The inside of a character class, from ascending numbers."""
    found: list[list[int]] = []
    for c in characters:
        if found and found[-1][1] == c - 1:
            found[-1][1] = c
        else:
            found.append([c, c])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in found)
