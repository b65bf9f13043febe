"""Types shared by the tests of shards."""

from __future__ import annotations

from typing import Protocol

from glomo_dist.data.shards.index import ShardIndex


class MakeShards(Protocol):
    """The fixture `make_shards`: an index over samples of these lengths."""

    def __call__(self, lengths: list[int], shard_bytes: int = ..., name: str = ...) -> ShardIndex: ...
