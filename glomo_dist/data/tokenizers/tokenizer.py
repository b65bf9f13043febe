"""Tokenizers as files: `tokenizer.json` beside the shards and in every exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from glomo_dist.data.tokenizers.pixels import PixelTokenizer
from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.data.tokenizers.tokenizer_json import check_header
from glomo_dist.runtime.errors import DataError, suggest
from glomo_dist.runtime.files import reading
from glomo_dist.runtime.json_files import read_json

TOKENIZER = "tokenizer.json"  # beside shards; that of a model is the same file
Tokenizer: TypeAlias = WordTokenizer | PixelTokenizer

KINDS: dict[str, type[WordTokenizer] | type[PixelTokenizer]] = {
    WordTokenizer.kind: WordTokenizer,
    PixelTokenizer.kind: PixelTokenizer,
}


def tokenizer_from_json(value: dict[str, Any], where: str = "tokenizer") -> Tokenizer:
    """The tokenizer that `to_json` described; DataError naming `where` if it is not one."""
    check_header(value, None, where)
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"{where}: unknown kind of tokenizer {kind!r}.{suggest(str(kind), KINDS)}")
    return KINDS[kind].from_json(value, where)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, or of the folder that holds one: of shards, a model, a run.

    Raises DataError naming what is missing or wrong.
    """
    path = Path(path)
    if path.is_dir():
        places = [path / part / TOKENIZER for part in ("", "train", "model")]
        with reading(path, DataError, "Allow it, or name another."):
            found = next((file for file in places if file.is_file()), None)
        if found is None:
            raise DataError(
                f"{path} holds no {TOKENIZER}. Expected a folder of shards (`glomo prepare`) or of a model "
                "(RUN/model)."
            )
        path = found
    return tokenizer_from_json(read_json(path), str(path))
