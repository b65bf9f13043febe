"""From a shard's bytes, wherever they come from, to its ids: read once, front to back, every byte checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from glomo_dist.data.shards.tarsamples import AGAIN, parse_samples
from glomo_dist.data.storage.places import Place, Source, in_time
from glomo_dist.runtime.errors import ShardError

_PIECE = 1 << 20  # bytes of samples checked at once: they stay in the processor's cache


class Layout(NamedTuple):
    """What the index says about one shard. first: number of its first sample; offsets, lengths: int64 [samples]."""

    bytes: int
    sha256: str
    vocab_size: int
    first: int
    offsets: np.ndarray
    lengths: np.ndarray

    def key(self) -> str:
        """Names the ids that come out: a hash of all that decides them and of what they were checked against."""
        digest = hashlib.sha256(
            f"2 {self.sha256} {self.bytes} {self.vocab_size} {self.first} {len(self.lengths)} ".encode()
        )
        digest.update(np.ascontiguousarray(self.offsets, np.int64).tobytes())
        digest.update(np.ascontiguousarray(self.lengths, np.int64).tobytes())
        return digest.hexdigest()[:40]


def decode(
    source: Source, layout: Layout, where: Place, write: Callable[[memoryview], object], until: float
) -> None:
    """Hand the ids of all samples to `write`, end to end. They are good only when this returns.

    Memory: a few pieces of 1 MB, or one sample if that is larger. Raises ShardError naming the shard `where` for
    bytes that are not those the index describes, OutOfTime after the monotonic time `until`.
    """
    digest = hashlib.sha256()

    def take(size: int) -> bytes:
        parts, left = [], size
        while left and (part := source.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
            digest.update(part)
            in_time(until)
        return b"".join(parts)

    borders = np.append(layout.offsets, layout.bytes)
    i, samples = 0, len(layout.lengths)
    while i < samples:
        j = int(np.searchsorted(borders, borders[i] + _PIECE, side="right")) - 1
        j = min(max(j, i + 1), samples)
        at, size = int(borders[i]), int(borders[j] - borders[i])
        content = take(size)
        if len(content) < size:
            begins = f" (it begins with {content[:16]!r})" if at == 0 else ""
            raise ShardError(
                f"shard {where} ends after {at + len(content)} bytes{begins}, the index says {layout.bytes}: it was "
                f"cut or is something else. {AGAIN}"
            )
        offsets, lengths = layout.offsets[i:j] - at, layout.lengths[i:j]
        ids = parse_samples(
            content, str(where), layout.first + i, offsets, lengths, layout.vocab_size, at, j == samples
        )
        write(ids.data)
        i = j
    if source.read(1):
        raise ShardError(f"shard {where} has more than the {layout.bytes} bytes of the index. {AGAIN}")
    if digest.hexdigest() != layout.sha256:
        raise ShardError(
            f"shard {where}: SHA-256 is {digest.hexdigest()[:12]}…, the index says {layout.sha256[:12]}…. {AGAIN}"
        )
