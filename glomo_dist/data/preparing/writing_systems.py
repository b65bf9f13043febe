"""A warning for text whose words cannot be found: writing systems without spaces, and what is no text at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_SHARE = 0.2  # of all characters; a few names in another script are no reason to warn
_LONG = 20  # characters of a mean word: no language has such, but encoded bytes and tables without spaces do
# Writing systems without spaces, and how long the mean word is at most where a person has cut the text into words:
# some 1.5 letters in Chinese, 2 in Japanese, 5 in Thai, vowel signs counted. Between two marks or spaces stand more.
_SPACELESS = (
    (
        "Chinese or Japanese",
        re.compile(
            r"[\u3005-\u3007\u3041-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
        ),
        3,
    ),
    (
        "Thai, Lao, Burmese or Khmer",
        re.compile(
            r"[\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u109f\u1780-\u17d3\ua9e0-\ua9fe\uaa60-\uaa7f]"
        ),
        8,
    ),
)


def uncut(words: Sequence[str], counts: np.ndarray) -> str | None:
    """Why these words, each seen so often, are probably none, and what to do; None if they look well."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    total = int(lengths @ counts)
    for name, script, most in _SPACELESS:
        of_script = np.fromiter(
            (0 if word.isascii() else len(script.findall(word)) for word in words), np.int64, len(words)
        )
        found, times = int(of_script @ counts), int(counts[of_script > 0].sum())
        if found > _SHARE * total and found > most * times:
            return (
                f"{100 * found / total:.0f} % of the characters are {name}, written without spaces, and what stands "
                f"between two spaces or marks was taken as one word ({found / times:.1f} characters in the mean). "
                "Cut the text into words first, with spaces between them."
            )
    if total > _LONG * counts.sum():
        mean = total / counts.sum()
        return f"the mean word has {mean:.0f} characters. Is this text, with spaces between its words?"
    return None
