"""From raw input to shards: `prepare_text` and `prepare_images`.

Text is read once. Its words go to a temporary file as provisional numbers; when all are counted, the vocabulary is
chosen and the numbers are translated while the shards are written. Memory holds the distinct words, and of the text
a document or a million characters at a time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from glomo_dist.data.preparing.images import Picture, pictures
from glomo_dist.data.preparing.parallel import ordered_map
from glomo_dist.data.preparing.sources import SPLIT, TEXT_KEY, WORDLESS, Split, documents
from glomo_dist.data.preparing.spool import Numbered, Numbering, Spool, chunks, number_words
from glomo_dist.data.preparing.writing_systems import uncut
from glomo_dist.data.shards.index import ShardIndex
from glomo_dist.data.shards.writing import ShardFolder, require_writer
from glomo_dist.data.storage.files import listed
from glomo_dist.data.tokenizers.pixels import PixelCensus, PixelTokenizer
from glomo_dist.data.tokenizers.text import UNKNOWN, WordTokenizer
from glomo_dist.data.tokenizers.tokenizer import load_tokenizer
from glomo_dist.runtime import progress
from glomo_dist.runtime.config import MOST_PROCESSES, whole
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.files import new_folder
from glomo_dist.runtime.words import counted

T = TypeVar("T", WordTokenizer, PixelTokenizer)

SHARD_BYTES = 64 << 20
VOCAB_SIZE, MIN_COUNT, BITS = 30_000, 1, 4
MANY_PIXEL_IDS = 1 << 16  # a softmax over more makes no sense: so fine a colour is hardly seen twice
MANY_UNKNOWN = 0.5  # above this share of <unk> it is said aloud
MOST_WORDS = 1 << 31  # ids are int32 until they are written


def prepare_text(
    sources: Iterable[str | Path],
    out: str | Path,
    *,
    vocab_size: int | None = None,
    min_count: int | None = None,
    tokenizer: str | Path | None = None,
    text_key: str = TEXT_KEY,
    split: Split = SPLIT,
    max_documents: int | None = None,
    valid_share: float = 0.0,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 1,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the documents of `sources` (see `sources.documents`) as shards of word ids into folder `out`.

    vocab_size: with <unk>; the most frequent words seen at least `min_count` times. None: VOCAB_SIZE, MIN_COUNT.
    tokenizer: a `tokenizer.json` (or folder with one) to use instead of counting words.
    valid_share: this share of the documents, chosen by a hash of their text (so copies stay together), goes to
        `out`/valid, the rest to `out`/train; only the rest is counted. 0: all of it goes to `out` itself.
    workers: processes that cut text into words; the result is the same for any number. They are spawned, so a program
        of your own calls this below `if __name__ == "__main__":` where there are several.
    beside: further files to put into `out`, by name.

    Returns `out`. Raises DataError or ConfigError and leaves nothing behind if the input is not usable.
    """
    sources = listed(sources)
    if not 0 <= valid_share < 1:
        raise ConfigError(f"valid_share must be from 0 to less than 1, got {valid_share}.")
    if max_documents is not None:
        max_documents = whole("max_documents", max_documents, 1)
    if tokenizer is not None and (vocab_size, min_count) != (None, None):
        raise ConfigError(
            "vocab_size and min_count choose words, but a tokenizer has its own. Leave them or it out."
        )
    vocab_size = VOCAB_SIZE if vocab_size is None else vocab_size
    vocab_size = whole("vocab_size", vocab_size, 2, MOST_WORDS, f" ({UNKNOWN} and a word)")
    min_count = whole("min_count", MIN_COUNT if min_count is None else min_count, 1)
    workers = whole("workers", workers, 1, MOST_PROCESSES)
    require_writer(shard_bytes)
    left_out: Counter[str] = Counter()
    parts = ("train", "valid") if valid_share else ("",)
    with new_folder(out, beside=beside) as folder:  # first, as it may be refused
        given = None if tokenizer is None else _tokenizer(tokenizer, WordTokenizer, "text needs")
        found = documents(sources, text_key=text_key, split=split, left_out=left_out)
        stream = itertools.islice(found, max_documents)
        spools = {part: Spool(folder) for part in parts}
        words = Numbering()
        numbered = ordered_map(partial(number_words, valid_share=valid_share), chunks(stream), workers)
        total = _spool(numbered, words, spools, left_out)
        for part, spool in spools.items():
            if not spool.samples:
                raise DataError(_nothing_usable(sources, part if total else "", valid_share))
        counts, distinct = [words.counts(spool) for spool in spools.values()], words.words()
        vocabulary = given or words.vocabulary(counts[0], vocab_size, min_count)
        provisional_to_id = vocabulary.encode(distinct)
        warning = uncut(distinct, counts[0])
        unknown = sum(int(count[provisional_to_id == 0].sum()) for count in counts)
        if unknown == total:
            raise DataError(
                f"{_named(sources)}: not one word is in the vocabulary of {tokenizer}, so every unit would be <unk>. "
                "Is it that of other texts?"
            )
        for part, spool in spools.items():
            if spool.longest < 2:
                where = f" in the part {part!r}" if part else ""
                raise DataError(
                    f"no document of {_named(sources)}{where} has two words, so there is nothing to predict. Give "
                    "longer ones; what is a document of a text file, split says (--split)."
                )
        for part, spool in spools.items():
            writer = ShardFolder(folder / part, vocabulary, shard_bytes)
            with progress.bar(
                spool, desc=f"writing {part}".strip(), unit=" documents", total=spool.samples
            ) as bar:
                _write(writer, ((provisional_to_id[ids], meta) for ids, meta in bar))
            spool.close()
    units = f"vocabulary {vocabulary.vocab_size:,}; {100 * unknown / total:.2f} % of the words are not in it"
    _report(Path(out), parts, units, left_out)
    if unknown > MANY_UNKNOWN * total:
        progress.say(
            f"WARNING: {100 * unknown / total:.0f} % of the words will be <unk>, of which little is learned"
        )
    if warning:
        progress.say(f"WARNING: {warning}")
    return Path(out)


def _spool(
    numbered: Iterable[Numbered], words: Numbering, spools: Mapping[str, Spool], left_out: Counter[str]
) -> int:
    """Put each document into the spool of its part, with the numbers of its words in `words`; returns how many words
    there are. Those without a word are counted in `left_out`."""
    total = 0
    with progress.bar(desc="reading", unit=" words", unit_scale=True, total=None) as bar:
        for chunk in numbered:
            ids = words.translate(chunk)
            ends = np.cumsum(chunk.lengths)
            for document, end, length in zip(chunk.documents, ends, chunk.lengths, strict=True):
                if length:
                    spools[document.part].add(ids[end - length : end], document)
                else:
                    left_out[WORDLESS] += 1
            total += len(ids)
            bar.update(len(ids))
    return total


def prepare_images(
    sources: Iterable[str | Path],
    out: str | Path,
    *,
    bits: int | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    tokenizer: str | Path | None = None,
    max_images: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the images of `sources` (see `images.pictures`) as shards of pixel ids into folder `out`.

    bits: kept of each channel; None: BITS.
    size: (height, width) to resize to; without it all must be as large as the first.
    channels: 1 or 3 to convert to; without it all must have as many as the first.
    tokenizer: a `tokenizer.json` (or folder with one) whose size, channels and bits are used instead.
    beside: further files to put into `out`, by name.

    Returns `out`. Raises DataError or ConfigError and leaves nothing behind if the input is not usable.
    """
    sources = listed(sources)
    if max_images is not None:
        max_images = whole("max_images", max_images, 1)
    if tokenizer is not None and (bits, size, channels) != (None, None, None):
        raise ConfigError("bits, size and channels are those of the tokenizer. Leave them or it out.")
    bits = whole("bits", BITS if bits is None else bits, 1, 8)
    require_writer(shard_bytes)
    left_out: Counter[str] = Counter()
    with new_folder(out, beside=beside) as folder:  # first, as it may be refused
        given = None if tokenizer is None else _tokenizer(tokenizer, PixelTokenizer, "images need")
        if given is not None:
            size, channels = given.shape, given.channels
        found = pictures(sources, size=size, channels=channels, left_out=left_out)
        stream = itertools.islice(found, max_images)
        first = next(stream, None)
        if first is None:
            raise DataError(f"no image in {_named(sources)}. Name image files, .npz or *-images-idx3-ubyte.")
        chosen = given or _tokenizer_for(first, bits)
        seen = PixelCensus(chosen)
        encoded = _encoded(itertools.chain([first], stream), chosen, seen)
        _write(ShardFolder(folder, chosen, shard_bytes), encoded)
        try:
            seen.require_two_ids()
        except DataError as e:
            raise DataError(f"{_named(sources)}: {e}") from None
    units = f"{chosen.vocab_size:,} pixel ids, {seen.ids:,} of them occur"
    _report(Path(out), ("",), units, left_out)
    return Path(out)


def _encoded(
    found: Iterable[Picture], tokenizer: PixelTokenizer, seen: PixelCensus
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Ids and metadata of each picture, which `seen` is told of. DataError for one that is not as the tokenizer."""
    for picture in progress.bar(found, desc="images", unit=" images"):
        try:
            ids = tokenizer.encode(picture.pixels)
        except DataError as e:
            raise DataError(
                f"{picture.where}: {e} (`size` and `channels` do that; the first image decides.)"
            ) from None
        seen.add(picture.pixels, ids)
        yield ids, {"source": picture.source, "row": picture.row}


def _tokenizer_for(first: Picture, bits: int) -> PixelTokenizer:
    """For images like the first one; warns where it would have too many ids."""
    height, width = first.pixels.shape[:2]
    tokenizer = PixelTokenizer(height, width, 3 if first.pixels.ndim == 3 else 1, bits)
    if (ids := tokenizer.vocab_size) > MANY_PIXEL_IDS:
        progress.say(
            f"WARNING: {bits} bits in {tokenizer.channels} channels make {ids:,} pixel ids. The model "
            "predicts each pixel by a softmax over all of them, which takes much memory and learns little: "
            f"keep fewer (--bits {BITS}), or grey images (--channels 1)."
        )
    return tokenizer


def _write(writer: ShardFolder, samples: Iterable[tuple[np.ndarray, dict[str, Any]]]) -> None:
    try:
        for ids, metadata in samples:
            writer.add(ids, metadata)
        writer.close()
    finally:
        writer.abandon()


def _report(out: Path, parts: Sequence[str], units: str, left_out: Counter[str]) -> None:
    for part in parts:
        index = ShardIndex.read(out / part)
        progress.say(
            f"{out / part}: {counted(index.samples, 'sample')}, {counted(index.tokens, 'unit')} in "
            f"{counted(len(index.shards), 'shard')}, fingerprint {index.fingerprint}"
        )
    progress.say(units)
    if left_out:
        progress.say("left out: " + ", ".join(f"{kind} ({count:,})" for kind, count in left_out.items()))


def _nothing_usable(sources: Iterable[str | Path], part: str, valid_share: float) -> str:
    if part:
        return (
            f"no document of {_named(sources)} fell into the part {part!r} with valid_share {valid_share}. "
            "Give more documents, or set valid_share to 0."
        )
    return (
        f"zero usable documents in {_named(sources)}: none contains a word. Check the files, text_key (--text-key) "
        "and split."
    )


def _named(sources: Iterable[str | Path]) -> str:
    return ", ".join(map(str, sources))


def _tokenizer(path: str | Path, wanted: type[T], need: str) -> T:
    """need: "text needs", of a tokenizer of the wanted kind."""
    tokenizer = load_tokenizer(path)
    if not isinstance(tokenizer, wanted):
        raise DataError(f"{path} is a tokenizer of {tokenizer.kind}, {need} one of {wanted.kind}.")
    return tokenizer
