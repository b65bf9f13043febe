"""The order of windows: properties, not golden numbers."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glomo_dist.data.reading.cutting import random_keys
from glomo_dist.data.reading.order import WindowOrder, Windows
from glomo_dist.data.shards.index import Shard, ShardIndex
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
    found = sorted(zip(*(a.tolist() for a in order.pieces(numbers)[1:]), strict=True))
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
    two.pieces(np.arange(300))  # asked for other things before
    together = list(zip(*(a.tolist() for a in one.pieces(np.array(numbers))[1:]), strict=True))
    alone = [tuple(int(a[0]) for a in two.pieces(np.array([n]))[1:]) for n in reversed(numbers)]
    assert alone == together[::-1]


def test_epochs_and_seeds_differ() -> None:
    index = index_of([[100] * 10] * 4)
    order = WindowOrder(index, 10, 1)

    def epoch(order: WindowOrder, n: int) -> list[tuple[int, int]]:
        _, sample, start, _ = order.pieces(n * order.per_epoch + np.arange(order.per_epoch))
        return list(zip(sample.tolist(), start.tolist(), strict=True))

    orders = [epoch(order, 0), epoch(order, 1), epoch(WindowOrder(index, 10, 2), 0)]
    for i, one in enumerate(orders):
        for two in orders[:i]:
            same = sum(a == b for a, b in zip(one, two, strict=True))
            assert same < 20  # of 400; one is expected


def test_the_order_is_uniform() -> None:
    """Chi-squared over which of 6 windows comes first in 6000 epochs (5 degrees of freedom, p = 1e-4)."""
    order = WindowOrder(index_of([[2]] * 6), 2, 7, block_shards=6)
    _, first, _, _ = order.pieces(np.arange(6000) * order.per_epoch)
    counts = np.bincount(first, minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 25.7


def test_a_block_is_a_few_shards() -> None:
    """With blocks of 2 shards, every stretch of a block's windows comes from those shards alone."""
    order = WindowOrder(index_of([[2] * 50] * 8), 2, 3, block_shards=2)
    _, sample, _, _ = order.pieces(np.arange(order.per_epoch))
    blocks = (sample // 50).reshape(4, 100)
    groups = [frozenset(block.tolist()) for block in blocks]
    assert all(len(group) == 2 for group in groups) and len(frozenset.union(*groups)) == 8
    for block, group in zip(blocks, groups, strict=True):
        assert 15 <= (block[:50] == min(group)).sum() <= 35, "mixed within the block: 25 of each are expected"
    _, later, _, _ = order.pieces(order.per_epoch + np.arange(order.per_epoch))
    assert {frozenset(b.tolist()) for b in (later // 50).reshape(4, 100)} != set(groups)


def test_a_million_samples() -> None:
    index = index_of([[200] * 100_000] * 10)
    order = WindowOrder(index, 128, 0)
    assert order.per_epoch == 2_000_000
    _, sample, start, length = order.pieces(np.arange(order.per_epoch))
    assert len(np.unique(sample * 2 + start // 128)) == order.per_epoch
    assert length.sum() == index.tokens


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 units"):
        WindowOrder(index_of([[5]]), 1, 0)
    for windows in get_args(Windows):
        with pytest.raises(ConfigError, match=r"at most 1,000,000,000,000,000, got 10{20}\."):
            WindowOrder(index_of([[5]]), 10**20, 0, windows=windows)
        longest = 2**31
        with pytest.raises(ConfigError, match=r"window 10{12} would make a row of 2,147,483,648 units"):
            WindowOrder(index_of([[longest]]), 10**12, 0, windows=windows)
        order = WindowOrder(index_of([[longest - 1]]), 10**12, 0, windows=windows)
        assert order.pieces(np.array([0])).length.tolist() == [longest - 1]
        assert WindowOrder(index_of([[longest, 5]]), 2**30, 0, windows=windows).per_epoch >= 3
        assert WindowOrder(index_of([[5, 3]]), 10**15, 0, windows=windows).per_epoch <= 2
    with pytest.raises(ConfigError, match=r"'pakced'.*Did you mean 'packed'"):
        WindowOrder(index_of([[5]]), 2, 0, windows="pakced")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="block_shards"):
        WindowOrder(index_of([[5]]), 2, 0, block_shards=0)
    with pytest.raises(DataError, match="no sample has two units"):
        WindowOrder(index_of([[1, 0]]), 4, 0)
    with pytest.raises(IndexError):
        WindowOrder(index_of([[5]]), 2, 0).pieces(np.array([3, -1]))


@settings(deadline=None)
@given(SIZES, st.integers(2, 50), st.integers(0, 2**40), st.integers(0, 3), st.integers(1, 3))
def test_packing_holds_every_window_once_in_rows_that_are_not_too_long(
    sizes: list[list[int]], window: int, seed: int, epoch: int, block_shards: int
) -> None:
    index = index_of(sizes)
    order = WindowOrder(index, window, seed, windows="packed", block_shards=block_shards)
    fixed = WindowOrder(index, window, seed)
    first, behind = order.epoch_first(epoch), order.epoch_first(epoch + 1)
    row, *pieces = order.pieces(np.arange(first, behind))
    assert (np.unique(row) == np.arange(behind - first)).all() and (np.diff(row) >= 0).all()
    assert np.bincount(row, pieces[2]).max() <= window
    once = sorted(zip(*(a.tolist() for a in pieces), strict=True))
    assert once == sorted(
        zip(*(a.tolist() for a in fixed.pieces(np.arange(fixed.per_epoch))[1:]), strict=True)
    )
    shards = [set(index.shard_of_sample[pieces[0][row == r]].tolist()) for r in range(behind - first)]
    assert all(len(s) <= block_shards for s in shards)


@settings(deadline=None)
@given(
    SIZES,
    st.sampled_from(["random", "packed"]),
    st.integers(0, 2**40),
    st.lists(st.integers(0, 300), min_size=1),
)
def test_other_windows_are_pure_functions_too(
    sizes: list[list[int]], windows: Windows, seed: int, numbers: list[int]
) -> None:
    one, two = (WindowOrder(index_of(sizes), 9, seed, windows=windows) for _ in range(2))
    two.pieces(np.arange(200))
    together = one.pieces(np.array(numbers))
    for place, n in enumerate(numbers):
        alone, chosen = two.pieces(np.array([n])), together.row == place
        assert not alone.row.any()
        assert all((a == b[chosen]).all() for a, b in zip(alone[1:], together[1:], strict=True))


def test_packing_fills_the_rows() -> None:
    """Documents of 5 to 60 words in rows of 64: fixed windows leave half of a row empty, packing next to nothing."""
    lengths = np.random.default_rng(0).integers(5, 61, 20_000)
    index = index_of([part.tolist() for part in np.array_split(lengths, 10)])
    assert 0.45 < WindowOrder(index, 64, 0).filled() < 0.55
    packed = WindowOrder(index, 64, 0, windows="packed")
    assert packed.filled() > 0.98
    rows = packed.pieces(np.arange(packed.per_epoch))
    assert np.bincount(rows.row, rows.length).mean() / 64 == pytest.approx(packed.filled())


def test_a_window_longer_than_all_there_is_to_pack() -> None:
    """It takes the memory of what is packed, and gives the rows that the units of a block would give."""
    index = index_of([[4, 5, 3, 5] * 8] * 4)
    one_row, long = (WindowOrder(index, w, 0, windows="packed", block_shards=2) for w in (272, 10**12))
    numbers = np.arange(5)
    assert long.per_epoch == one_row.per_epoch == 2
    for a, b in zip(long.pieces(numbers), one_row.pieces(numbers), strict=True):
        assert a.tolist() == b.tolist()


def test_packed_neighbours_change_with_the_epoch() -> None:
    index = index_of([[4, 5, 3] * 30])
    order = WindowOrder(index, 12, 0, windows="packed")

    def neighbours(epoch: int) -> set[frozenset[int]]:
        row, sample, *_ = order.pieces(np.arange(order.epoch_first(epoch), order.epoch_first(epoch + 1)))
        return {frozenset(sample[row == r].tolist()) for r in np.unique(row)}

    assert len(neighbours(0) & neighbours(1)) < 10


def test_random_windows_are_those_of_the_authors() -> None:
    """Lengths 200 * 1.4^U(-2, 0), each begun 100 +- 10 units after the one before, other ones in every epoch."""
    index = index_of([[50_000]] * 4)
    order = WindowOrder(index, 200, 3, windows="random")

    def epoch(n: int) -> list[tuple[int, int, int]]:
        pieces = order.pieces(np.arange(order.epoch_first(n), order.epoch_first(n + 1)))
        return sorted(zip(*(a.tolist() for a in pieces[1:]), strict=True))

    windows = np.array(epoch(0))
    sample, start, length = windows.T
    assert (start[np.unique(sample, return_index=True)[1]] == 0).all()
    advance = np.diff(start)[np.diff(sample) == 0]
    assert set(advance.tolist()) == set(range(90, 111))
    whole = length[start + 200 <= 50_000]
    assert whole.min() in (102, 103) and whole.max() == 200 and (start + length).max() == 50_000
    # log_1.4(length / 200) is uniform in [-2, 0]: Kolmogorov-Smirnov distance, 1.95 / sqrt(n) has p = 0.001
    share = np.sort(np.log(whole / 200) / np.log(1.4) / 2 + 1)
    distance = np.abs(share - (np.arange(len(share)) + 0.5) / len(share)).max()
    assert distance < 1.95 / np.sqrt(len(share)) + 0.01  # rounding to whole units
    inside = (np.diff(sample) == 0) & (start[1:] + 200 <= 50_000)
    for other in (length[1:][inside], np.diff(start)[inside]):
        assert abs(np.corrcoef(length[:-1][inside], other)[0, 1]) < 0.1
    assert len(set(epoch(0)) & set(epoch(1))) < 30


@settings(deadline=None)
@given(SIZES, st.integers(2, 40), st.integers(0, 2**40), st.integers(0, 4))
def test_random_windows_lie_in_their_samples(
    sizes: list[list[int]], window: int, seed: int, epoch: int
) -> None:
    index = index_of(sizes)
    order = WindowOrder(index, window, seed, windows="random")
    numbers = np.arange(order.epoch_first(epoch), order.epoch_first(epoch + 1))
    _, sample, start, length = order.pieces(numbers)
    assert (length >= 2).all() and (length <= max(window, 2)).all()
    assert (start >= 0).all() and (start + length <= index.lengths[sample]).all()
    assert set(sample.tolist()) == set(np.flatnonzero(index.lengths >= 2).tolist())
    by_sample = np.lexsort((start, sample))
    advance = np.diff(start[by_sample])[np.diff(sample[by_sample]) == 0]
    assert (abs(advance - max(window // 2, 1)) <= min(10, window // 4)).all() and (advance > 0).all()


def test_spare_rows_are_pure_and_near() -> None:
    index = index_of([[6] * 40] * 12)
    for windows in get_args(Windows):
        order, other = (WindowOrder(index, 6, 5, windows=windows, block_shards=3) for _ in range(2))
        for number in (0, 700, 1500):
            epoch = max(e for e in range(9) if order.epoch_first(e) <= number)
            spares = [order.spare(number, attempt) for attempt in range(40)]
            assert spares == [other.spare(number, attempt) for attempt in range(40)]
            assert all(order.epoch_first(epoch) <= n < order.epoch_first(epoch + 1) for n in spares)

            def shards(numbers: list[int], order: WindowOrder = order) -> set[int]:
                return set(index.shard_of_sample[order.pieces(np.array(numbers)).sample].tolist())

            assert len(shards([number, *spares[:16]])) <= 3 < len(shards(spares))


@pytest.mark.parametrize(
    ("windows", "rows", "spares"),
    [
        ("fixed", [(0, 7, 0, 12), (1, 9, 0, 7), (2, 6, 0, 9), (3, 7, 12, 8), (4, 5, 0, 3)], [17, 18, 27]),
        ("random", [(0, 6, 6, 3), (1, 6, 3, 6), (2, 7, 13, 7), (3, 8, 0, 6), (4, 7, 7, 7)], [29, 30, 47]),
        ("packed", [(0, 8, 0, 6), (1, 7, 12, 8), (2, 6, 0, 9), (2, 5, 0, 3), (3, 7, 0, 12), (4, 9, 0, 7)],
         [17, 15, 18]),
    ],
)  # fmt: skip
def test_the_order_of_a_known_seed(
    windows: Windows, rows: list[tuple[int, int, int, int]], spares: list[int]
) -> None:
    """A run that is resumed by a later version goes on with the samples that it has not seen."""
    index = index_of([[30, 5, 12], [8, 40], [3, 9, 20, 6], [7]])
    order = WindowOrder(index, 12, 8, windows=windows, block_shards=2)
    first = order.epoch_first(1)
    pieces = order.pieces(np.arange(first, first + 5))
    assert list(zip(*(array.tolist() for array in pieces), strict=True)) == rows
    assert {array.dtype for array in pieces} == {np.dtype(np.int64)}
    assert [order.spare(first + 1, attempt) for attempt in (0, 1, 16)] == spares


def test_keys_are_the_published_numbers_of_splitmix() -> None:
    """Those of the reference in C, https://prng.di.unimi.it/splitmix64.c, with x = 1234567."""
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert random_keys(4, 1234567).tolist() == numbers and random_keys(0, 1).shape == (0,)
