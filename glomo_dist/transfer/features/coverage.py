"""How many of a task's words are unknown to what reads them: a file of vectors, the vocabulary of a predictor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

TOGETHER = 1 << 20  # ids that are counted at a time: each count looks at all the words there are
MANY = 0.5  # above this share it is said aloud: what follows is hardly a result about these words


@dataclass(frozen=True)
class Unknown:
    """Shares of what is not known: of all words of the texts (a text of several examples counts once), and of the
    distinct ones."""

    words: float
    distinct: float


def unknown(texts: Iterable[np.ndarray[Any, Any]], known: np.ndarray[Any, Any]) -> Unknown:
    """texts: ids of words, integer [n] each.  known: bool [ids], whether an id is of a word that is known."""
    counts = np.zeros(len(known), np.int64)
    for ids in _blocks(texts):
        counts += np.bincount(ids, minlength=len(known))
    there = counts > 0
    return Unknown(_share(counts[~known].sum(), counts.sum()), _share((there & ~known).sum(), there.sum()))


def _blocks(texts: Iterable[np.ndarray[Any, Any]]) -> Iterator[np.ndarray[Any, Any]]:
    waiting, size = [], 0
    for ids in texts:
        waiting.append(ids)
        size += len(ids)
        if size >= TOGETHER:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0


def percent(share: float) -> str:
    """0.1234 as "12.34 %"."""
    return f"{100 * share:.2f} %"
