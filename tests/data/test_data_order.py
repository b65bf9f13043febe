"""The order of windows: properties, not golden numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glomo_dist.data.index import Shard, ShardIndex
from glomo_dist.data.order import WindowOrder
from glomo_dist.runtime.errors import ConfigError, DataError


def index_of(lengths_by_shard: list[list[int]]) -> ShardIndex:
    """An index with samples of these lengths; the order reads nothing but sizes."""
    shards, first = [], 0
    for i, lengths in enumerate(lengths_by_shard):
        shards.append(Shard(f"shard-{i:05d}.tar", 0, "", len(lengths), sum(lengths), first))
        first += len(lengths)
    lengths = np.array([n for shard in lengths_by_shard for n in shard], np.int64)
    return ShardIndex(
        Path("none"),
        "words",
        "",
        "",
        10,
        first,
        int(lengths.sum()),
        tuple(shards),
        lengths,
        np.zeros_like(lengths),
    )


SIZES = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=6), min_size=1, max_size=6).filter(
    lambda shards: any(n >= 2 for shard in shards for n in shard)
)


@settings(deadline=None)
@given(SIZES, st.integers(2, 12), st.integers(0, 2**40), st.integers(0, 3), st.integers(1, 3))
def test_an_epoch_has_every_window_once(
    sizes: list[list[int]], window: int, seed: int, epoch: int, block_shards: int
) -> None:
    index = index_of(sizes)
    order = WindowOrder(index, window, seed, block_shards=block_shards)
    numbers = epoch * order.per_epoch + np.arange(order.per_epoch)
    found = sorted(zip(*(a.tolist() for a in order.windows(numbers)), strict=True))
    expected = sorted(
        (sample, start, min(window, n - start))
        for sample, n in enumerate(index.lengths.tolist())
        for start in range(0, n, window)
        if n - start >= 2
    )
    assert found == expected


@settings(deadline=None)
@given(
    SIZES, st.integers(2, 12), st.integers(0, 2**40), st.lists(st.integers(0, 500), min_size=1, max_size=20)
)
def test_it_is_a_pure_function(sizes: list[list[int]], window: int, seed: int, numbers: list[int]) -> None:
    one, two = (WindowOrder(index_of(sizes), window, seed) for _ in range(2))
    two.windows(np.arange(300))  # asked for other things before
    together = list(zip(*(a.tolist() for a in one.windows(np.array(numbers))), strict=True))
    assert [tuple(two.window(n)) for n in reversed(numbers)] == together[::-1]


def test_epochs_and_seeds_differ() -> None:
    index = index_of([[100] * 10] * 4)
    order = WindowOrder(index, 10, 1)

    def epoch(order: WindowOrder, n: int) -> list[tuple[int, int]]:
        sample, start, _ = order.windows(n * order.per_epoch + np.arange(order.per_epoch))
        return list(zip(sample.tolist(), start.tolist(), strict=True))

    orders = [epoch(order, 0), epoch(order, 1), epoch(WindowOrder(index, 10, 2), 0)]
    for i, one in enumerate(orders):
        for two in orders[:i]:
            same = sum(a == b for a, b in zip(one, two, strict=True))
            assert same < 20  # of 400; one is expected


def test_the_order_is_uniform() -> None:
    """Chi-squared over which of 6 windows comes first in 6000 epochs (5 degrees of freedom, p = 1e-4)."""
    order = WindowOrder(index_of([[2]] * 6), 2, 7, block_shards=6)
    first, _, _ = order.windows(np.arange(6000) * order.per_epoch)
    counts = np.bincount(first, minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 25.7


def test_a_block_is_a_few_shards() -> None:
    """With blocks of 2 shards, every stretch of a block's windows comes from those shards alone."""
    order = WindowOrder(index_of([[2] * 50] * 8), 2, 3, block_shards=2)
    sample, _, _ = order.windows(np.arange(order.per_epoch))
    blocks = (sample // 50).reshape(4, 100)
    groups = [frozenset(block.tolist()) for block in blocks]
    assert all(len(group) == 2 for group in groups) and len(frozenset.union(*groups)) == 8
    assert all(
        (block[:50] == min(group)).sum() + 25 >= 40 for block, group in zip(blocks, groups, strict=True)
    )
    later, _, _ = order.windows(order.per_epoch + np.arange(order.per_epoch))
    assert {frozenset(b.tolist()) for b in (later // 50).reshape(4, 100)} != set(groups)


def test_a_million_samples() -> None:
    index = index_of([[200] * 100_000] * 10)
    order = WindowOrder(index, 128, 0)
    assert order.per_epoch == 2_000_000
    sample, start, length = order.windows(np.arange(order.per_epoch))
    assert len(np.unique(sample * 2 + start // 128)) == order.per_epoch
    assert length.sum() == index.tokens


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 units"):
        WindowOrder(index_of([[5]]), 1, 0)
    with pytest.raises(ConfigError, match="block_shards"):
        WindowOrder(index_of([[5]]), 2, 0, block_shards=0)
    with pytest.raises(DataError, match="no sample has two units"):
        WindowOrder(index_of([[1, 0]]), 4, 0)
    with pytest.raises(IndexError):
        WindowOrder(index_of([[5]]), 2, 0).window(-1)
