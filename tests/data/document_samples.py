"""Documents in every packing, and their texts as the program reads them."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import zstandard

from glomo_dist.data.preparing.sources import documents

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
LINES = b'{"text": "one fish", "id": 1}\n \n{"text": "two \\u00e9"}\n'
TEXTS = [
    f"the {w} ran to the {w} {'again and again ' * i}." for i, w in enumerate(["cat", "dog", "fox"] * 40)
]


def texts(*sources: Path | str, **options) -> list[str]:
    return [d.text for d in documents([str(s) for s in sources], **options)]
