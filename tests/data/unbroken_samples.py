"""A corpus that a server has, and its shards."""

from __future__ import annotations

import json
import random
from pathlib import Path

from glomo_dist.data import ShardIndex, prepare_text

NAME = "corpus.jsonl"
WORDS = [f"w{i}" for i in range(500)]


def lines(seed: int = 1, rows: int = 1000) -> bytes:
    """About 200 kB."""
    draw = random.Random(seed)
    return b"".join(
        json.dumps({"text": " ".join(draw.choices(WORDS, k=40))}).encode() + b"\n" for _ in range(rows)
    )


def prepared(source: str | Path, out: Path) -> str:
    return ShardIndex.read(prepare_text([str(source)], out, min_count=1)).fingerprint
