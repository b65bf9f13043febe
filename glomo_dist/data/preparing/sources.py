"""Documents from text files: plain text, JSON lines, tokenised text and Parquet."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from glomo_dist.data.storage.files import InputFile, find_files
from glomo_dist.data.storage.lines import HALF_PAIR, json_objects, numbered_lines
from glomo_dist.data.storage.parquet import parquet_rows
from glomo_dist.data.tokenizers.text import between_spaces, tokenize
from glomo_dist.runtime.errors import ConfigError, DataError, suggest

Split = Literal["file", "paragraph", "line"]
TEXT_KEY: str = "text"
SPLIT: Split = "file"
WITH_KEYS, WITHOUT_KEYS = (".jsonl", ".parquet"), (".txt", ".tokens")
TEXT_SUFFIXES = (*WITHOUT_KEYS, *WITH_KEYS)
WORDLESS = "documents without a word"
_PIECE = 1 << 20  # characters
_SPACE = re.compile(r"\s")
_ARTICLE = re.compile(r"^= (?!= )(.*\S)(?<! =) =$")  # the heading of one


@dataclass(frozen=True)
class Document:
    """One text and where it came from: label of the file, and line (from 1), row (from 0) or article in it."""

    text: str
    source: str
    row: int
    tokenised: bool = False

    def words(self) -> Iterator[str]:
        """Units of the text; in a tokenised file they are what stands between the spaces."""
        cut = between_spaces if self.tokenised else tokenize
        return itertools.chain.from_iterable(map(cut, _pieces(self.text)))


def _pieces(text: str) -> Iterator[str]:
    """The text in parts with the same words, as words take twenty times the memory of their text."""
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + _PIECE)  # no word goes over it, nor what makes one lower-case
        end = space.end() if space else len(text)
        yield text[start:end]
        start = end


def documents(
    sources: Iterable[str | Path],
    *,
    text_key: str = TEXT_KEY,
    split: Split = SPLIT,
    left_out: Counter[str] | None = None,
) -> Iterator[Document]:
    """All documents of `sources`, in a stable order, read as a stream.

    sources: files, folders, globs or URLs; .txt, .jsonl, .tokens, .parquet, each also .gz, .xz, .zst.
    text_key: the key (JSON lines) or column (Parquet) with the text.
    split: what is one document of a .txt or .tokens file: the file (of .tokens an article), a paragraph (blank lines
        between), or a line.
    left_out: counts the files of other kinds (see `find_files`) and, as `WORDLESS`, the documents that are blank; an
        empty file counts as one.

    Blank documents are left out. Raises DataError naming file, line and key for anything unreadable, for an
    empty file that was named outright and for sources without a file; ConfigError for a `text_key` or a `split`,
    other than these, that none of the files has a use for.
    """
    if split not in get_args(Split):
        raise ConfigError(f"split: unknown value {split!r}.{suggest(str(split), get_args(Split))}")
    left_out = Counter() if left_out is None else left_out
    files = find_files(sources, TEXT_SUFFIXES, left_out)
    for idle, name, kinds in (
        (text_key != TEXT_KEY, "text_key (--text-key)", WITH_KEYS),
        (split != SPLIT, "split (--split)", WITHOUT_KEYS),
    ):
        if idle and not any(file.suffix in kinds for file in files):
            raise ConfigError(
                f"{name} is for files of {' or '.join(kinds)}, and the inputs have none. Leave it out."
            )
    return _documents(files, text_key, split, left_out)


def _documents(
    files: list[InputFile], text_key: str, split: Split, left_out: Counter[str]
) -> Iterator[Document]:
    for file in files:
        any_text = any_document = False
        for document in _of_file(file, text_key, split):
            any_document = True
            if document.text and not document.text.isspace():
                any_text = True
                yield document
            else:
                left_out[WORDLESS] += 1
        if not any_document:
            left_out[WORDLESS] += 1
        if not any_text and file.outright:
            raise DataError(
                f"{file.name} has no text in it. Remove it from the inputs, or check how it was made."
            )


def _of_file(file: InputFile, text_key: str, split: Split) -> Iterator[Document]:
    if file.suffix == ".jsonl":
        return _json_lines(file, text_key)
    if file.suffix == ".parquet":
        return _parquet(file, text_key)
    tokenised = file.suffix == ".tokens"
    return _articles(file) if tokenised and split == "file" else _plain(file, split, tokenised)


def _lines(file: InputFile) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1); a carriage return alone ends one too."""
    return enumerate((line for _, text in numbered_lines(file) for line in text.split("\r")), 1)


def _plain(file: InputFile, split: Split, tokenised: bool) -> Iterator[Document]:
    start, part = 1, io.StringIO()
    for number, line in _lines(file):
        blank = not line.strip()
        if split == "file" or not blank:
            part.write(f"{line}\n")
        if split == "line" or (split == "paragraph" and blank):
            text, part = part.getvalue()[:-1], io.StringIO()
            if text:
                yield Document(text, file.label, start, tokenised)
            start = number + 1
    text = part.getvalue()[:-1]
    part.close()  # a file may be large
    if text:
        yield Document(text, file.label, start, tokenised)


def _articles(file: InputFile) -> Iterator[Document]:
    """An article begins at a heading of the first level, "= Title =", as in WikiText."""
    start = 1
    part: list[str] = []
    for number, line in _lines(file):
        if _ARTICLE.match(line.strip()) and any(part):
            yield Document("\n".join(part), file.label, start, tokenised=True)
            start, part = number, []
        part.append(line.strip())
    if part:
        yield Document("\n".join(part), file.label, start, tokenised=True)


def _json_lines(file: InputFile, text_key: str) -> Iterator[Document]:
    for number, row in json_objects(file):
        where = f"{file.name}, line {number}"
        if text_key not in row:
            raise DataError(
                f"{where}: no key {text_key!r}; set text_key (--text-key).{suggest(text_key, row)}"
            )
        text = _text(row[text_key], f"{where}, key {text_key!r}")
        if not text.isascii() and HALF_PAIR.search(text):
            # Half a surrogate pair is legal JSON, but no character and not writable: it becomes U+FFFD.
            text = HALF_PAIR.sub("\ufffd", text)
        yield Document(text, file.label, number)


def _parquet(file: InputFile, text_key: str) -> Iterator[Document]:
    for row, values in parquet_rows(file, (text_key,), advice="; set text_key (--text-key)"):
        yield Document(
            _text(values[text_key], f"{file.name}, row {row}, column {text_key!r}"), file.label, row
        )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        units = " Units that are cut already go into a .tokens file, with spaces between them."
        raise DataError(
            f"{where}: expected text, got {type(value).__name__} ({str(value)[:40]!r}). Put a text there, or take "
            f"the row out.{units if isinstance(value, list) else ''}"
        )
    if "\0" in value:
        raise DataError(f"{where}: contains a zero byte, which is no text. Take it out, or the row.")
    return value
