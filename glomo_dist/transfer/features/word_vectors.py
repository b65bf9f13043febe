"""Word vectors from their files: `.npz` archives and the text of GloVe and word2vec."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from typing import Any

import numpy as np

from glomo_dist.data.storage.remote import file_system
from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.files import sha256_file
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.rows import lines
from glomo_dist.transfer.datasets.sources import npz_arrays, one_file

_TEXT = (".txt", ".vec")
_VECTORS = (*_TEXT, ".npz")
_HEADER = re.compile(r"([0-9]{1,18}) ([0-9]{1,9})")  # word2vec's: count and width


@dataclass(frozen=True)
class WordVectors:
    """Frozen vectors float32 [n, d] of `words`; `where` is the file they come from."""

    words: dict[str, int]
    vectors: np.ndarray[Any, Any]
    where: str

    @classmethod
    def load(cls, source: str, only: Collection[str] | None = None, width: int | None = None) -> WordVectors:
        """Read `.npz` (arrays words [n], vectors [n, d]) or GloVe text ("word v1 … vd" a line), local or URL.

        Both may be compressed (.gz .xz .zst). The text may begin with word2vec's header line "count width", which
        must be true, and have spaces inside words. The first of several vectors of a word counts.
        only: keep just these words (a large file is then read in little memory).
        width: the d that must come, or DataError.
        """
        archive = one_file(source, _VECTORS).suffix == ".npz"
        loaded = _npz(source, only) if archive else _text(source, only, width)
        if width is not None and loaded.width != width:
            raise DataError(
                f"{source}: vectors of width {loaded.width}, expected {width}. Use the matching file."
            )
        return loaded

    @property
    def width(self) -> int:
        return int(self.vectors.shape[1])

    def table(self, vocabulary: list[str]) -> np.ndarray[Any, Any]:
        """float32 [len(vocabulary), d]; a word without a vector is a row of zeros."""
        table = np.zeros((len(vocabulary), self.width), np.float32)
        rows = [(i, self.words[word]) for i, word in enumerate(vocabulary) if word in self.words]
        if not rows:
            raise DataError(
                f"{self.where}: none of the task's {len(vocabulary)} words has a vector. Wrong language?"
            )
        at, of = np.array(rows, np.int64).T
        table[at] = self.vectors[of]
        return table


def vectors_content(source: str) -> str:
    """What a fingerprint says of word vectors: the SHA-256 of a local file, however it is named (a path, file://, a
    pattern of one file), or of the local archive that they are in, after their place in it; else the address.
    DataError for a local file that is not there or cannot be read."""
    links, chain, place = source.rpartition("::")
    if "://" not in links:  # a file with :: in its name
        links, chain, place = "", "", source
    if "://" in place and not place.startswith(("file://", "local://")):
        return source
    try:
        path = file_system(place)[1] if chain else one_file(place, _VECTORS).path
        return links + chain + sha256_file(path)
    except OSError as e:
        raise DataError(f"{source} cannot be read: {describe(e)}. Check the file.") from e


def table_fingerprint(table: np.ndarray[Any, Any]) -> str:
    """Of the table alone: what else the file of the vectors holds changes nothing."""
    return hashlib.sha256(str(table.shape).encode() + table.tobytes()).hexdigest()[:16]


def _npz(source: str, only: Collection[str] | None) -> WordVectors:
    words, vectors = npz_arrays(source, ("words",), ("vectors",))
    if words.ndim != 1 or vectors.ndim != 2 or len(words) != len(vectors):
        raise DataError(
            f"{source}: expected words [n] and vectors [n, d], got {words.shape} and {vectors.shape}."
        )
    if not vectors.shape[1]:
        raise DataError(f"{source}: vectors of width 0. Save them again.")
    if vectors.dtype.kind not in "fiu":
        raise DataError(f"{source}: vectors must be numbers, got {vectors.dtype}. Save them as float32.")
    if words.dtype.kind == "S":
        try:
            words = np.char.decode(words, "utf-8")
        except UnicodeDecodeError as e:
            raise DataError(f"{source}: a word is not UTF-8 ({e}). Save the words as str.") from None
    kept = _first_rows([str(w) for w in words.tolist()], only)
    with np.errstate(over="ignore"):  # what is too large for float32 is reported below
        table = vectors[list(kept.values())].astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if bad.size:
        word, row = list(kept.items())[bad[0]]
        raise DataError(f"{source}: the vector of word {word!r} (row {row}) is not finite as float32.")
    return WordVectors({word: i for i, word in enumerate(kept)}, table, source)


def _first_rows(words: list[str], only: Collection[str] | None) -> dict[str, int]:
    rows: dict[str, int] = {}
    for i, word in enumerate(words):
        if (only is None or word in only) and word not in rows:
            rows[word] = i
    return rows


def _text(source: str, only: Collection[str] | None, width: int | None) -> WordVectors:
    words: dict[str, int] = {}
    vectors: list[np.ndarray[Any, Any]] = []
    rows = ((number, line) for number, text in lines(source, _TEXT) if (line := text.rstrip()))
    begin = list(islice(rows, 2))
    if not begin:
        raise DataError(f"{source}: the file is empty. Expected a word and its numbers on each line.")
    header = _HEADER.fullmatch(begin[0][1]) if begin[0][0] == 1 else None
    promised = int(header[1]) if header else None
    if header:
        begin, width = begin[1:], int(header[2])
    elif width is None:
        width = _width(*(line.split(" ") for _, line in begin))
    count = 0
    for number, line in chain(begin, rows):
        cells = line.split(" ")
        count += 1
        # With more cells than the width, the word itself has spaces (GloVe 840B), unless they are numbers
        # too and no header says so.
        word, values = " ".join(cells[:-width]), cells[-width:]
        spare = len(cells) - width - 1
        if width < 1 or spare < 0 or (spare and not header and all(map(_number, cells[1:]))):
            numbers = counted(width, "number") if width else "its numbers"
            raise DataError(
                f"{source}, line {number}: expected a word and {numbers}, got {counted(len(cells), 'cell')}. "
                "Single spaces (no tabs) separate the cells, and all vectors of a file have one width; repair or "
                "remove the line."
            )
        if word in words or (only is not None and word not in only):
            continue
        try:
            with np.errstate(over="ignore"):  # what is too large for float32 is reported below
                vector = np.array(values, dtype=np.float32)
        except ValueError as e:
            raise DataError(
                f"{source}, line {number}: {e}. Expected {counted(width, 'number')} after the word."
            ) from None
        if not np.isfinite(vector).all():
            raise DataError(f"{source}, line {number}: the vector of {word!r} is not finite.")
        words[word] = len(words)
        vectors.append(vector)
    if promised not in (None, count):
        raise DataError(
            f"{source}: line 1 promises {promised} vectors, the file has {count}. The copy may be cut: copy it "
            "again, or correct line 1."
        )
    stacked = np.stack(vectors) if vectors else np.zeros((0, width), np.float32)
    return WordVectors(words, stacked, source)


def _width(first: list[str], second: list[str] | None = None) -> int:
    """Of the vectors, by the cells of the first line: all but one, unless the word has spaces and the second line has
    as many numbers as end this one."""
    if second and not all(map(_number, first[1:])):
        ends = [len(list(takewhile(_number, reversed(cells[1:])))) for cells in (first, second)]
        # a word may end in a number, which the second line tells, if its word is one cell
        if ends[0] == ends[1] or ends[0] > ends[1] == len(second) - 1:
            return ends[1] or len(first) - 1
    return len(first) - 1


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
