"""What the tests of shards share."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np

from glomo_dist.data.shards.index import ShardIndex


class MakeShards(Protocol):
    """The fixture `make_shards`: an index over samples of these lengths."""

    def __call__(self, lengths: list[int], shard_bytes: int = ..., name: str = ...) -> ShardIndex: ...


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
