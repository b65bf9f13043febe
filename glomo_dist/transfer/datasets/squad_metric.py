"""Exact match and F1 of an answer, as SQuAD's official evaluation of v1.1 computes them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, then without ASCII punctuation, then without a, an, the; one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Iterable[str]) -> float:
    """1.0 if the prediction is one of the gold answers after normalisation, else 0.0."""
    return float(normalized(prediction) in {normalized(gold) for gold in golds})


def f1(prediction: str, golds: Iterable[str]) -> float:
    """The largest harmonic mean of precision and recall of the words, over the golds; 0 without a common one."""
    return max(_f1(normalized(prediction).split(), normalized(gold).split()) for gold in golds)


def _f1(prediction: list[str], gold: list[str]) -> float:
    common = sum((Counter(prediction) & Counter(gold)).values())
    return 2 * common / (len(prediction) + len(gold)) if common else 0.0
