"""Words as provisional numbers on disk, so that a corpus is read and cut once and never held in memory.

A chunk of documents is numbered by itself (`number_words`, in any process), translated into the numbering of all
(`Numbering`) and put aside (`Spool`) until the vocabulary is known.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np

from glomo_dist.data.preparing.sources import Document
from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.words import counted

_CHUNK_CHARACTERS = 1 << 20  # of text handed to a worker at a time
_SPOOL_BLOCK = 1 << 20  # provisional ids read at a time


class Origin(NamedTuple):
    """Where a document comes from, and the part of the data that it goes to."""

    source: str
    row: int
    part: str


class Numbered(NamedTuple):
    """Documents as numbers into their own list of words. ids: int32 [sum of lengths]; lengths: int64 [n]."""

    words: list[str]
    ids: np.ndarray
    lengths: np.ndarray
    documents: list[Origin]


def chunks(stream: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about a million characters."""
    chunk: list[Document] = []
    characters = 0
    for document in stream:
        chunk.append(document)
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def number_words(chunk: list[Document], valid_share: float) -> Numbered:
    """A chunk by itself. Of its documents `valid_share` get the part "valid", others "train"; all "" if it is 0."""
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # a new word gets the next number
    ids = array("i")
    ends = [0]
    for document in chunk:
        ids.extend(map(numbers.__getitem__, document.words()))
        ends.append(len(ids))
    origins = [Origin(d.source, d.row, _part(d.text, valid_share)) for d in chunk]
    return Numbered(list(numbers), np.array(ids, np.int32), np.diff(ends), origins)


def _part(text: str, valid_share: float) -> str:
    if not valid_share:
        return ""
    digest = hashlib.sha256(text.encode()).digest()
    return "valid" if int.from_bytes(digest[:8], "big") < valid_share * 2**64 else "train"


class Numbering:
    """Provisional numbers of all words seen, in order of appearance."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__

    def words(self) -> list[str]:
        """In the order of their numbers."""
        return list(self._numbers)

    def translate(self, numbered: Numbered) -> np.ndarray:
        """int32 [n]: the ids of a chunk in this numbering."""
        table = np.fromiter(map(self._numbers.__getitem__, numbered.words), np.int32, len(numbered.words))
        translated: np.ndarray = table[numbered.ids]
        return translated

    def counts(self, spool: Spool) -> np.ndarray:
        """int64 [words]: how often each word occurs in the documents of `spool`."""
        counts = np.zeros(len(self._numbers), np.int64)
        for ids in spool.blocks():
            counts += np.bincount(ids, minlength=len(counts))
        return counts

    def vocabulary(self, counts: np.ndarray, size: int, min_count: int) -> WordTokenizer:
        """The vocabulary of documents with these counts."""
        seen = zip(self._numbers, counts.tolist(), strict=True)
        vocabulary = WordTokenizer.from_counts(seen, size, min_count)
        if vocabulary.vocab_size < 2:
            raise DataError(
                f"no word occurs {counted(min_count, 'time')} or more. Lower min_count, or give more text."
            )
        return vocabulary


class Spool:
    """Documents of provisional ids on disk: written once, then read in order.

    In files without a name, which nobody else deletes or cuts meanwhile, and which end with the process.
    """

    def __init__(self, folder: Path) -> None:
        self.samples = self.longest = 0  # words of the longest
        self._ids = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close
        self._meta = TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115 - closed by close

    def add(self, ids: np.ndarray, origin: Origin) -> None:
        """ids: int32 [n]."""
        self._ids.write(ids.tobytes())
        self._meta.write(json.dumps([len(ids), origin.source, origin.row]) + "\n")
        self.samples += 1
        self.longest = max(self.longest, len(ids))

    def blocks(self) -> Iterator[np.ndarray]:
        """All ids, int32, a million at a time."""
        self._ids.seek(0)
        while block := self._ids.read(4 * _SPOOL_BLOCK):
            yield np.frombuffer(block, np.int32)

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        self._ids.seek(0)
        self._meta.seek(0)
        for line in self._meta:
            length, source, row = json.loads(line)
            yield np.frombuffer(self._ids.read(4 * length), np.int32), {"source": source, "row": row}

    def close(self) -> None:
        self._ids.close()
        self._meta.close()
