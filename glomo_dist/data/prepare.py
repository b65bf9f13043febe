"""From raw input to shards: `prepare_text` and `prepare_images`.

Text is read once. Its words go to a temporary file as provisional numbers; when all are counted, the vocabulary is
chosen and the numbers are translated while the shards are written. Memory holds the distinct words, no text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glomo_dist.data.images import pictures
from glomo_dist.data.index import ShardIndex
from glomo_dist.data.parallel import ordered_map
from glomo_dist.data.pixels import PixelTokenizer
from glomo_dist.data.shards import ShardFolder
from glomo_dist.data.sources import Document, Split, documents
from glomo_dist.data.text import UNKNOWN, WordTokenizer
from glomo_dist.data.tokenizer import Tokenizer, load_tokenizer
from glomo_dist.runtime import progress
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.files import new_folder, require_absent_or_empty

SHARD_BYTES = 64 << 20
_CHUNK_CHARACTERS = 1 << 20  # of text handed to a worker at a time
_SPOOL_BLOCK = 1 << 20  # provisional ids read at a time


def prepare_text(
    sources: Sequence[str],
    out: str | Path,
    *,
    vocab_size: int = 30_000,
    min_count: int = 1,
    tokenizer: str | Path | None = None,
    text_key: str = "text",
    split: Split = "file",
    max_documents: int | None = None,
    valid_share: float = 0.0,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 1,
) -> Path:
    """Write the documents of `sources` (see `sources.documents`) as shards of word ids into folder `out`.

    vocab_size: with <unk>; the most frequent words seen at least `min_count` times.
    tokenizer: a `tokenizer.json` (or folder with one) to use instead of counting words.
    valid_share: this share of the documents, chosen by a hash of their text (so copies stay together), goes to
        `out`/valid, the rest to `out`/train; only the rest is counted. 0: all of it goes to `out` itself.
    workers: processes that cut text into words; the result is the same for any number.

    Returns `out`. Raises DataError or ConfigError and leaves nothing behind if the input is not usable.
    """
    if not 0 <= valid_share < 1:
        raise ConfigError(f"valid_share must be from 0 to less than 1, got {valid_share}.")
    if max_documents is not None and max_documents < 1:
        raise ConfigError(f"max_documents must be at least 1, got {max_documents}.")
    if vocab_size < 2:
        raise ConfigError(f"vocab_size must be at least 2 ({UNKNOWN} and a word), got {vocab_size}.")
    require_absent_or_empty(out)
    given = _word_tokenizer(tokenizer) if tokenizer is not None else None
    stream = itertools.islice(documents(sources, text_key=text_key, split=split), max_documents)
    parts = ("train", "valid") if valid_share else ("",)
    with new_folder(out) as folder:
        spools = {part: _Spool(folder / f"spool-{part}") for part in parts}
        words = _Numbering()
        with progress.bar(desc="reading", unit=" words", unit_scale=True, total=None) as bar:
            for numbered in ordered_map(_number_words, _chunks(stream, valid_share), workers):
                ids = words.translate(numbered)
                ends = np.cumsum(numbered.lengths)
                for document, end, length in zip(numbered.documents, ends, numbered.lengths, strict=True):
                    if length:
                        spools[document.part].add(ids[end - length : end], document)
                bar.update(len(ids))
        for part, spool in spools.items():
            spool.finish()
            if not spool.samples:
                raise DataError(_nothing_usable(sources, part, valid_share))
        vocabulary = given or words.vocabulary(spools[parts[0]], vocab_size, min_count)
        provisional_to_id = vocabulary.encode(words.words())
        unknown = 0
        for part, spool in spools.items():
            writer = ShardFolder(folder / part, vocabulary, shard_bytes)
            with progress.bar(
                spool, desc=f"writing {part}".strip(), unit=" documents", total=spool.samples
            ) as bar:
                unknown += _write(writer, ((provisional_to_id[ids], meta) for ids, meta in bar))
            spool.delete()
    _report(Path(out), parts, vocabulary, unknown)
    return Path(out)


def prepare_images(
    sources: Sequence[str],
    out: str | Path,
    *,
    bits: int = 4,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    tokenizer: str | Path | None = None,
    max_images: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write the images of `sources` (see `images.pictures`) as shards of pixel ids into folder `out`.

    bits: kept of each channel.  size: (height, width) to resize to; without it all must be as large as the first.
    channels: 1 or 3 to convert to; without it all must have as many as the first.
    tokenizer: a `tokenizer.json` (or folder with one) whose size, channels and bits are used instead.

    Returns `out`. Raises DataError or ConfigError and leaves nothing behind if the input is not usable.
    """
    if max_images is not None and max_images < 1:
        raise ConfigError(f"max_images must be at least 1, got {max_images}.")
    require_absent_or_empty(out)
    pixel_tokenizer: PixelTokenizer | None = None
    if tokenizer is not None:
        pixel_tokenizer = _pixel_tokenizer(tokenizer)
        size, channels = pixel_tokenizer.shape, pixel_tokenizer.channels
    stream = itertools.islice(pictures(sources, size=size, channels=channels), max_images)
    first = next(stream, None)
    if first is None:
        raise DataError(
            f"no image in {', '.join(map(str, sources))}. Name image files, .npz or *-images-idx3-ubyte."
        )
    if pixel_tokenizer is None:
        height, width = first.pixels.shape[:2]
        pixel_tokenizer = PixelTokenizer(height, width, 3 if first.pixels.ndim == 3 else 1, bits)

    def samples(chosen: PixelTokenizer) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        for picture in progress.bar(itertools.chain([first], stream), desc="images", unit=" images"):
            try:
                ids = chosen.encode(picture.pixels)
            except DataError as e:
                raise DataError(
                    f"{picture.where}: {e} (`size` and `channels` convert; the first image decides.)"
                ) from None
            yield ids, {"source": picture.source, "row": picture.row}

    with new_folder(out) as folder:
        _write(ShardFolder(folder, pixel_tokenizer, shard_bytes), samples(pixel_tokenizer))
    _report(Path(out), ("",), pixel_tokenizer, 0)
    return Path(out)


def _write(writer: ShardFolder, samples: Iterable[tuple[np.ndarray, dict[str, Any]]]) -> int:
    """Write all `samples`; returns how often the id 0 occurs."""
    zeros = 0
    try:
        for ids, metadata in samples:
            writer.add(ids, metadata)
            zeros += int(np.count_nonzero(ids == 0))
        writer.close()
    finally:
        writer.abandon()
    return zeros


def _report(out: Path, parts: Sequence[str], tokenizer: Tokenizer, unknown: int) -> None:
    total = 0
    for part in parts:
        index = ShardIndex.read(out / part)
        total += index.tokens
        progress.say(
            f"{out / part}: {index.samples:,} samples, {index.tokens:,} units in {len(index.shards)} shards, "
            f"fingerprint {index.fingerprint}"
        )
    if tokenizer.kind == "words":
        progress.say(
            f"vocabulary {tokenizer.vocab_size:,}; {100 * unknown / total:.2f} % of the words are not in it"
        )
    else:
        progress.say(f"{tokenizer.vocab_size:,} pixel ids")


def _nothing_usable(sources: Sequence[str], part: str, valid_share: float) -> str:
    named = ", ".join(map(str, sources))
    if part:
        return (
            f"no document of {named} fell into the part {part!r} with valid_share {valid_share}. "
            "Give more documents, or set valid_share to 0."
        )
    return f"zero usable documents in {named}: none contains a word. Check the files, text_key and split."


def _word_tokenizer(path: str | Path) -> WordTokenizer:
    tokenizer = load_tokenizer(path)
    if not isinstance(tokenizer, WordTokenizer):
        raise DataError(f"{path} is a tokenizer of {tokenizer.kind}, text needs one of words.")
    return tokenizer


def _pixel_tokenizer(path: str | Path) -> PixelTokenizer:
    tokenizer = load_tokenizer(path)
    if not isinstance(tokenizer, PixelTokenizer):
        raise DataError(f"{path} is a tokenizer of {tokenizer.kind}, images need one of pixels.")
    return tokenizer


class _Origin(NamedTuple):
    source: str
    row: int
    part: str


class _Numbered(NamedTuple):
    """Documents as numbers into their own list of words. ids: int32 [sum of lengths]; lengths: int64 [n]."""

    words: list[str]
    ids: np.ndarray
    lengths: np.ndarray
    documents: list[_Origin]


def _chunks(stream: Iterable[Document], valid_share: float) -> Iterator[tuple[list[Document], float]]:
    """Documents in groups of about a million characters."""
    chunk: list[Document] = []
    characters = 0
    for document in stream:
        chunk.append(document)
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk, valid_share
            chunk, characters = [], 0
    if chunk:
        yield chunk, valid_share


def _number_words(job: tuple[list[Document], float]) -> _Numbered:
    chunk, valid_share = job
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # a new word gets the next number
    ids: list[int] = []
    lengths = []
    for document in chunk:
        words = document.words()
        ids.extend(map(numbers.__getitem__, words))
        lengths.append(len(words))
    origins = [_Origin(d.source, d.row, _part(d.text, valid_share)) for d in chunk]
    return _Numbered(list(numbers), np.array(ids, np.int32), np.array(lengths, np.int64), origins)


def _part(text: str, valid_share: float) -> str:
    if not valid_share:
        return ""
    digest = hashlib.sha256(text.encode()).digest()
    return "valid" if int.from_bytes(digest[:8], "big") < valid_share * 2**64 else "train"


class _Numbering:
    """Provisional numbers of all words seen, in order of appearance."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__

    def words(self) -> list[str]:
        return list(self._numbers)

    def translate(self, numbered: _Numbered) -> np.ndarray:
        """int32 [n]: the ids of a chunk in this numbering."""
        table = np.fromiter(map(self._numbers.__getitem__, numbered.words), np.int32, len(numbered.words))
        return table[numbered.ids]

    def vocabulary(self, spool: _Spool, size: int, min_count: int) -> WordTokenizer:
        """The vocabulary of the documents in `spool`."""
        counts = np.zeros(len(self._numbers), np.int64)
        for ids in spool.blocks():
            counts += np.bincount(ids, minlength=len(counts))
        seen = ((word, count) for word, count in zip(self._numbers, counts.tolist(), strict=True) if count)
        vocabulary = WordTokenizer.from_counts(seen, size, min_count)
        if vocabulary.vocab_size < 2:
            raise DataError(f"no word occurs {min_count} times or more. Lower min_count, or give more text.")
        return vocabulary


class _Spool:
    """Documents of provisional ids on disk: written once, then read in order."""

    def __init__(self, path: Path) -> None:
        self.samples = 0
        self._ids_path, self._meta_path = path.with_suffix(".ids"), path.with_suffix(".jsonl")
        self._ids = open(self._ids_path, "wb")  # noqa: SIM115 - closed by finish
        self._meta = open(self._meta_path, "w", encoding="utf-8")  # noqa: SIM115 - closed by finish

    def add(self, ids: np.ndarray, origin: _Origin) -> None:
        self._ids.write(ids.tobytes())
        self._meta.write(json.dumps([len(ids), origin.source, origin.row]) + "\n")
        self.samples += 1

    def finish(self) -> None:
        self._ids.close()
        self._meta.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """All ids, int32, a million at a time."""
        with open(self._ids_path, "rb") as f:
            while block := f.read(4 * _SPOOL_BLOCK):
                yield np.frombuffer(block, np.int32)

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        with open(self._ids_path, "rb") as ids, open(self._meta_path, encoding="utf-8") as meta:
            for line in meta:
                length, source, row = json.loads(line)
                yield np.frombuffer(ids.read(4 * length), np.int32), {"source": source, "row": row}

    def delete(self) -> None:
        self._ids_path.unlink()
        self._meta_path.unlink()
