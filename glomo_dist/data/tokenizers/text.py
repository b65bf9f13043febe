"""Words: how text is cut into units, and the vocabulary that numbers them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from typing import Any

import numpy as np

from glomo_dist.data.tokenizers.marks import composed, mark, may_have_marks, origins
from glomo_dist.data.tokenizers.tokenizer_json import check_header, form_of, restored
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import fingerprint

UNKNOWN = "<unk>"

# The same cut as that of the word vectors the tasks use, so that the two vocabularies name the same words.
_WORD = re.compile(r"[a-z0-9]+(?=n't)|n't|'[a-z]+|[^\W_]+|[^\w\s]")
_TYPOGRAPHIC = (("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2013", "-"), ("\u2014", "-"))

_ESCAPED = re.compile(r"^@([-,.])@$")  # WikiText writes a hyphen, comma or point inside a word this way


def tokenize(text: str) -> list[str]:
    """Lower-cased words and punctuation marks: "don't" -> do n't, "it's" -> it 's, hyphens are split off.

    Words are in Unicode's composed form (NFC), and a combining mark after a letter belongs to its word.
    """
    if text.isascii():  # what follows would change nothing
        return _WORD.findall(text.lower())
    plain = _plain(lower_case(text))
    return _pattern(plain).findall(plain)


def between_spaces(text: str) -> list[str]:
    """Units of a text that is cut already, as in a .tokens file: what stands between spaces, in lower case, NFC."""
    return [_ESCAPED.sub(r"\1", unit) for unit in lower_case(text).split()]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of `tokenize(text)` stand: word i was text[start : end] before it was made lower case."""
    lower = text.lower()
    whole = composed(lower)
    plain = _plain(whole)
    spans = [match.span() for match in _pattern(plain).finditer(plain)]
    if len(lower) == len(text) and whole == lower:
        return spans
    starts, ends = origins(text)
    return [(starts[first], ends[end - 1]) for first, end in spans]


def lower_case(text: str) -> str:
    """In lower case, then composed: in another order two spellings of one word could stay two."""
    return composed(text.lower())


def _plain(text: str) -> str:
    """A `lower_case` text with plain quotes and dashes in the place of typographic ones."""
    if not text.isascii():  # five scans of a text that has none of these are a tenth of the whole work
        for typographic, plain in _TYPOGRAPHIC:
            text = text.replace(typographic, plain)
    return text


def _pattern(plain: str) -> re.Pattern[str]:
    return _marked_word() if may_have_marks(plain) else _WORD


@cache
def _marked_word() -> re.Pattern[str]:
    """`_WORD`, with the marks of letters in words: what has no marks it cuts alike, but takes longer to."""
    return re.compile(
        rf"[a-z0-9]+(?=n't)|n't|'[a-z]+(?![a-z]|{mark()})"
        rf"|[^\W_]+(?:(?![\0-\u02ff])(?<!\d){mark()}+[^\W_]*)*|[^\w\s]"
    )


@dataclass(frozen=True)
class WordTokenizer:
    """A vocabulary: id i stands for `words[i]`, id 0 for every word that is not in it."""

    words: tuple[str, ...]
    kind = "words"

    def __post_init__(self) -> None:
        if not self.words or self.words[0] != UNKNOWN:
            raise DataError(f"vocabulary: the first word must be {UNKNOWN!r}, got {self.words[:1]!r}.")
        if len(set(self.words)) != len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise DataError(f"vocabulary: every word must occur once, but {word!r} occurs {count} times.")

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int] | Iterable[tuple[str, int]], size: int, min_count: int = 1
    ) -> WordTokenizer:
        """The `size` - 1 most frequent words seen at least `min_count` times; ties in the order of the words."""
        if size < 2:
            raise DataError(f"vocabulary size must be at least 2 ({UNKNOWN} and a word), got {size}.")
        items = counts.items() if isinstance(counts, Mapping) else counts
        usable = [(-count, word) for word, count in items if count >= min_count and word != UNKNOWN]
        return cls((UNKNOWN, *(word for _, word in islice(sorted(usable), size - 1))))

    @classmethod
    def train(cls, texts: Iterable[str], size: int, min_count: int = 1) -> WordTokenizer:
        """The vocabulary of `texts`, which are read once and not kept."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenize(text))
        if not counts:
            raise DataError("cannot build a vocabulary: the texts have no word in them.")
        return cls.from_counts(counts, size, min_count)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word -> id."""
        return {word: i for i, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint({"kind": self.kind, "words": self.words})

    def encode(self, text: str | Sequence[str]) -> np.ndarray:
        """int32 [n]: the ids of a text (tokenised here) or of words (taken as they are)."""
        words = tokenize(text) if isinstance(text, str) else text
        get = self.ids.get
        return np.fromiter((get(word, 0) for word in words), dtype=np.int32, count=len(words))

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words of `ids`; raises DataError for an id outside the vocabulary."""
        words = []
        for i in ids:
            if not 0 <= i < len(self.words):
                raise DataError(f"id {i} is outside the vocabulary of {len(self.words)} words.")
            words.append(self.words[i])
        return words

    def to_json(self) -> dict[str, Any]:
        return form_of(self, {"words": list(self.words)})

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str = "tokenizer") -> WordTokenizer:
        """Inverse of `to_json`; DataError naming `where` if the content is not what was written."""
        check_header(value, cls.kind, where)
        words = value.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{where}: key 'words' must be a list of strings. Prepare the data again.")
        return restored(lambda: cls(tuple(words)), value, where)
