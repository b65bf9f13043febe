"""Cut text or images into units (words, pixels) and write them as WebDataset shards with an index.

Examples:
  glomo prepare text corpus.txt more/*.jsonl.xz --out shards --vocab-size 30000 --valid-share 0.01
  glomo prepare text https://example.org/corpus.parquet --text-key body --out shards
  glomo prepare images photos/ --size 32 32 --bits 3 --out pixels
  glomo prepare demo --out raw      # text.jsonl, docstrings.jsonl (a task) and digits.npz, to try the others on

Text: .txt .jsonl .tokens .parquet (each also .gz .xz .zst); images: folders of image files, .npz, idx files, binary
batches of CIFAR-10.
A source is a file, a folder, a pattern, or an http(s):// or s3:// address. `glomo prepare text --help` lists the
settings of one kind.
"""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, subcommand

from glomo_dist.cli.arguments import command_file, parse, shown_as
from glomo_dist.data import load_tokenizer, prepare_images, prepare_text
from glomo_dist.data.prepare import BITS, MIN_COUNT, VOCAB_SIZE
from glomo_dist.data.preparing.demo import write_demo_corpus
from glomo_dist.data.preparing.sources import SPLIT, TEXT_KEY, Split
from glomo_dist.data.tokenizers.pixels import PixelTokenizer
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.files import COMMAND_FILE
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.signals import STOP_SIGNALS, as_interrupt, held

Sources = Positional[Annotated[tuple[str, ...], shown_as("required", "SOURCE [SOURCE ...]")]]
MIB = 1 << 20


def _int(default: int) -> Any:
    """A number that is None unless it is given, so that one which contradicts another flag is seen whatever it is."""
    return shown_as(f"default: {default}", "INT")


@dataclass(frozen=True)
class Text:
    """Words. Example: glomo prepare text corpus.txt --out shards --vocab-size 30000"""

    sources: Sources
    """Files, folders, patterns or URLs."""
    out: str
    """Folder to write; it must not exist, or be empty."""
    vocab_size: Annotated[int | None, _int(VOCAB_SIZE)] = None
    """Most frequent words kept, one of them <unk>."""
    min_count: Annotated[int | None, _int(MIN_COUNT)] = None
    """Words seen less often become <unk>."""
    tokenizer: str | None = None
    """The tokenizer.json of other shards (or their folder), used as it is: for data a model shall read later."""
    text_key: str = TEXT_KEY
    """Key (.jsonl) or column (.parquet) with the text."""
    split: Split = SPLIT
    """What is one document of a .txt or .tokens file (file: in .tokens, each article)."""
    max_documents: int | None = None
    """Stop after so many."""
    valid_share: float = 0.0
    """This share of the documents goes to OUT/valid, the rest to OUT/train."""
    shard_mib: int = 64
    """Size of a shard."""
    workers: int = 1
    """Processes that cut text into words."""

    def run(self, beside: Mapping[str, bytes]) -> None:
        prepare_text(
            _required(self.sources), self.out, vocab_size=self.vocab_size, min_count=self.min_count,
            tokenizer=self.tokenizer, text_key=self.text_key, split=self.split, max_documents=self.max_documents,
            valid_share=self.valid_share, shard_bytes=self.shard_mib * MIB, workers=self.workers, beside=beside,
        )  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Pixels. Example: glomo prepare images photos/ --size 32 32 --bits 3 --out pixels"""

    sources: Sources
    """Image files, folders of them, .npz, idx files, binary batches of CIFAR-10, patterns or URLs."""
    out: str
    """Folder to write; it must not exist, or be empty."""
    bits: Annotated[int | None, _int(BITS)] = None
    """Kept of each channel of a pixel; there are 2^(bits x channels) different units."""
    size: tuple[int, int] | None = None
    """Height and width to resize to; without it all images must have the size of the first."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (colour) to convert to; without it all must be as the first."""
    tokenizer: str | None = None
    """The tokenizer.json of other shards (or their folder) whose size, channels and bits are used."""
    max_images: int | None = None
    """Stop after so many."""
    shard_mib: int = 64
    """Size of a shard."""

    def run(self, beside: Mapping[str, bytes]) -> None:
        prepare_images(
            _required(self.sources), self.out, bits=self.bits, size=self.size, channels=self.channels,
            tokenizer=self.tokenizer, max_images=self.max_images, shard_bytes=self.shard_mib * MIB, beside=beside,
        )  # fmt: skip


@dataclass(frozen=True)
class Demo:
    """Raw files that every machine has: Python's documentation, docstrings, handwritten digits.

    Example: glomo prepare demo --out raw
    """

    out: str
    """Folder to write; it must not exist, or be empty."""

    def run(self, beside: Mapping[str, bytes]) -> None:
        write_demo_corpus(self.out, beside)


KINDS: dict[str, type[Text | Images | Demo]] = {"text": Text, "images": Images, "demo": Demo}
Kind = (
    Annotated[Text, subcommand("text")]
    | Annotated[Images, subcommand("images")]
    | Annotated[Demo, subcommand("demo")]
)


def _required(sources: Sequence[str]) -> list[str]:
    if not sources:
        raise ConfigError("prepare: no source given. Name files, folders or URLs before --out.")
    return list(sources)


def _require_kind(argv: Sequence[str]) -> None:
    """The parser's own message for a forgotten kind shows options, of commands that do not exist."""
    if argv and not argv[0].startswith("-") and argv[0] not in KINDS:
        raise ConfigError(
            f"prepare: expected text, images or demo first, got {argv[0]!r}. For text: glomo prepare text ..."
        )


def _parsed(argv: Sequence[str]) -> Text | Images | Demo:
    """Each kind by itself, as a command: for subcommands the parser's messages name help that is not there."""
    _require_kind(argv)
    kind = KINDS.get(argv[0]) if argv else None
    if kind is None:
        return parse(Kind, argv, name="prepare", description=__doc__)
    return parse(kind, argv[1:], name=f"prepare {argv[0]}", description=kind.__doc__)


def main(argv: Sequence[str]) -> None:
    command = _parsed(argv)
    out, record = Path(command.out), command_file(f"prepare {type(command).__name__.lower()}", command)
    if _made(out, record):  # killed at its very end, the program may have said nothing although all is there
        raise GlomoError(f"{out} was written by this very command already. Use it, or delete it first.")
    with as_interrupt(STOP_SIGNALS):  # so that nothing half-written stays
        try:
            command.run({COMMAND_FILE: record})
        except KeyboardInterrupt:
            if not _made(out, record):
                raise
        with held(drop=True):  # the folder is whole, and the same command would refuse it
            _say_next(command)


def _made(out: Path, record: bytes) -> bool:
    """Whether this command made what is in the folder: its record comes into it at the very end."""
    with contextlib.suppress(OSError):  # it may not be there, or not be looked at: the command itself says so
        return (out / COMMAND_FILE).read_bytes() == record
    return False


def _say_next(command: Text | Images | Demo) -> None:
    if isinstance(command, Demo):
        say(f"next: glomo prepare text {shlex.quote(f'{command.out}/text.jsonl')} --out shards/text")
    else:
        out = shlex.quote(command.out)
        window = ""
        if isinstance(command, Images):  # an image is one sequence
            tokenizer = load_tokenizer(command.out)
            assert isinstance(tokenizer, PixelTokenizer)
            window = f" --window {math.prod(tokenizer.shape)}"
        say(
            f"next: glomo pretrain {out}{window} --out run   (what it will cost: glomo plan --data {out}{window})"
        )
