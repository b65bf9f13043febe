"""Processes that use a cache of shards: python cache_jobs.py CACHE LIMIT KEY BYTES once|slow|hold|loop."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from glomo_dist.data.reading.cache import Ids, ShardCache

DTYPE = np.dtype(np.uint8)


def content(key: str, size: int) -> bytes:
    return hashlib.shake_128(key.encode()).digest(size)


def key_of(name: str) -> str:
    """A key as those of shards are, of 40 hexadecimal digits."""
    return name.ljust(40, "0")


def use(cache: ShardCache, key: str, size: int, slow: bool = False) -> Ids:
    def make(file: BinaryIO) -> bytes:
        ids = content(key, size)
        file.write(ids[: size // 2])
        file.flush()
        if slow:
            print("making", flush=True)
            time.sleep(60)
        file.write(ids[size // 2 :])
        print("made", key, flush=True)
        return hashlib.sha256(ids).digest()

    held = cache.open(key_of(key), DTYPE, size, make, lambda: False, f"shard {key}")
    assert held.ids.tobytes() == content(key, size)
    return held


def main() -> None:
    folder, limit, key, size, how = sys.argv[1:6]
    cache = ShardCache(Path(folder), int(limit), 20.0)
    if how == "loop":  # many shards in a cache that holds a few
        draw = np.random.default_rng(int(key))
        for n in draw.integers(0, 12, 60).tolist():
            use(cache, f"{n:x}f", int(size)).close()
        return
    held = use(cache, key, int(size), slow=how == "slow")
    if how == "hold":
        print("holding", flush=True)
        time.sleep(60)
    held.close()


if __name__ == "__main__":
    main()
