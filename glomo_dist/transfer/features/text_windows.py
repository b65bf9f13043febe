"""How long texts are cut for an encoder that takes so many tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Window:
    """Words first .. last - 1 of a text are encoded together; the states of begin .. end - 1 are taken from them."""

    first: int
    last: int
    begin: int
    end: int


def windows(sizes: Sequence[int], capacity: int) -> list[Window]:
    """Cut a text whose words have `sizes` sub-words into windows of at most `capacity` (a longer word is alone).

    Each window begins in the middle of the one before it. Of the words that two share, each takes the first half, so
    that every word has words on both sides where there are any.
    """
    spans: list[tuple[int, int]] = []
    first = 0
    while not spans or spans[-1][1] < len(sizes):
        last, size = first, 0
        while last < len(sizes) and (last == first or size + sizes[last] <= capacity):
            size += sizes[last]
            last += 1
        spans.append((first, last))
        first = max(first + 1, (first + last + 1) // 2)
    bounds = [0, *((b + e) // 2 for (_, e), (b, _) in pairwise(spans)), len(sizes)]
    kept = pairwise(bounds)
    return [Window(*span, *words) for span, words in zip(spans, kept, strict=True)]
