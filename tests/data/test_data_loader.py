"""Batches of ranks: what they hold, on any number of ranks, resumed anywhere."""

from __future__ import annotations

import contextlib
import itertools
import pwd
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_samples import MakeShards

from glomo_dist.data import BadShard, Batch, Reading, ShardIndex, Stream, read_sample
from glomo_dist.data.reading.cache import default_folder
from glomo_dist.data.reading.order import WindowOrder
from glomo_dist.data.reading.reader import ShardReader
from glomo_dist.runtime.errors import ConfigError

LENGTHS = [3, 1, 0, 700, 5, 90, 1, 9, 12, 40, 8, 8]


@pytest.fixture
def index(make_shards: MakeShards) -> ShardIndex:
    return make_shards(LENGTHS)


def stream(index: ShardIndex, **options: Any) -> Stream:
    return Stream(index, **{"window": 16, "seed": 5, "global_batch": 6, **options})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python looks into the current folder first")
def test_readers_import_nothing_from_the_current_folder(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user, called like one of Python')")
    expected = rows(stream(index).batch(0))
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(stream(index, reading=Reading(readers=1)).iterate()) as batches:
        assert rows(next(batches)) == expected


def rows(batch: Batch) -> list[tuple[int, list[int]]]:
    return [
        (int(n), tokens[:length].tolist())
        for n, tokens, length in zip(batch.ids, batch.tokens, batch.lengths, strict=True)
    ]


def test_a_batch_holds_the_windows_of_the_order_padded_with_zeros(index: ShardIndex) -> None:
    s = stream(index)
    for step in (0, 3, 40):
        batch = s.batch(step)
        assert {t.dtype for t in (batch.tokens, batch.lengths, batch.ids)} == {torch.int64}
        assert batch.ids.tolist() == list(range(6 * step, 6 * step + 6))
        assert batch.tokens.shape == (6, int(batch.lengths.max()))
        assert batch.segments is None
        for row, (tokens, length) in enumerate(zip(batch.tokens, batch.lengths, strict=True)):
            _, (sample,), (start,), (units,) = s.order.pieces(batch.ids[row : row + 1].numpy())
            assert (
                tokens[: int(length)].tolist() == read_sample(index, sample)[start : start + units].tolist()
            )
            assert not tokens[int(length) :].any()
    assert stream(index, windows="random").batch(0).segments is None


def test_packed_rows_say_where_everything_is(index: ShardIndex) -> None:
    s = stream(index, windows="packed")
    for step in range(2 * s.order.per_epoch // 6 + 1):
        batch = s.batch(step)
        assert batch.segments is not None and batch.segments.shape == batch.tokens.shape
        assert ((batch.segments >= 0).sum(1) == batch.lengths).all() and int(batch.lengths.max()) <= 16
        for row, keys in enumerate(s.keys(batch)):
            column = 0
            for document, (shard, key, start, length) in enumerate(keys):
                sample = int(key)
                assert index.shards[int(index.shard_of_sample[sample])].name == shard
                inside = slice(column, column + length)
                expected = read_sample(index, sample)[start : start + length]
                assert batch.tokens[row, inside].tolist() == expected.tolist()
                assert batch.segments[row, inside].tolist() == [document] * length
                column += length
            assert column == batch.lengths[row] and not batch.tokens[row, column:].any()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 30))
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(
    index: ShardIndex, world: int, step: int
) -> None:
    whole = rows(stream(index, global_batch=12).batch(step))
    parts = [rows(stream(index, global_batch=12, rank=r, world=world).batch(step)) for r in range(world)]
    assert sorted(itertools.chain(*parts)) == whole
    assert {len(part) for part in parts} == {12 // world}


def test_stopped_on_4_ranks_and_resumed_on_2_nothing_is_lost_or_repeated(index: ShardIndex) -> None:
    def run(world: int, steps: range) -> list[tuple[int, list[int]]]:
        streams = [stream(index, global_batch=4, rank=r, world=world) for r in range(world)]
        return [row for step in steps for s in streams for row in rows(s.batch(step))]

    uninterrupted = run(1, range(50))
    assert sorted(run(4, range(20)) + run(2, range(20, 50))) == uninterrupted
    assert len(uninterrupted) > stream(index).order.per_epoch, "the test's own check: more than an epoch"


def test_iterating_is_asking_for_each_step(index: ShardIndex) -> None:
    batches = stream(index, reading=Reading(prefetch=3, readers=2)).iterate(7)
    for step in range(7, 20):
        assert rows(next(batches)) == rows(stream(index).batch(step))
    batches.close()


@pytest.mark.parametrize("windows", ["fixed", "packed"])
def test_the_order_of_an_epoch_is_made_once(
    index: ShardIndex, windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the steps of several readers lie in two epochs by turns."""
    made, make = [], WindowOrder._make_epoch

    def made_and_noted(order: WindowOrder, epoch: int) -> Any:
        made.append(epoch)
        return make(order, epoch)

    monkeypatch.setattr(WindowOrder, "_make_epoch", made_and_noted)
    s = stream(index, windows=windows)
    for step in range(0, 40, 2):
        for _ in s.batches([step + 1, step]):
            pass
    assert len(made) == len(set(made)) > 2


def test_as_many_batches_are_read_ahead_as_were_asked_for(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = stream(index, reading=Reading(prefetch=3, readers=0))
    begun, read = [], s._read

    def read_and_noted(reader: ShardReader, step: int) -> Batch:
        begun.append(step)
        return read(reader, step)

    monkeypatch.setattr(s, "_read", read_and_noted)
    with contextlib.closing(s.iterate(7)) as batches:
        for taken in (7, 8):
            next(batches)
            until = time.monotonic() + 5
            while len(begun) < taken - 3 and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(0.05)
            assert begun == list(range(7, taken + 4))


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "glomo-prefetch"]


def test_closing_ends_the_thread(index: ShardIndex) -> None:
    batches = stream(index, reading=Reading(prefetch=1, readers=0)).iterate()
    next(batches)
    assert prefetch_threads()
    batches.close()
    assert not prefetch_threads()


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_a_bad_shard_is_an_error_after_the_batches_before_it(index: ShardIndex, readers: int) -> None:
    s = stream(index, reading=Reading(readers=readers))
    needed = [{key.shard for row in s.keys(s.batch(step)) for key in row} for step in range(12)]
    shard = next(iter(needed[9] - set.union(*needed[:3])), None) or next(iter(needed[5]))
    first = min(step for step in range(12) if shard in needed[step])
    path = index.folder / shard
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    shutil.rmtree(default_folder())  # it has been checked before
    batches: Iterator[Batch] = s.iterate()
    for step in range(first):
        assert next(batches).ids.tolist() == list(range(6 * step, 6 * step + 6))
    with pytest.raises(BadShard, match=f"{shard}.*damaged") as error:
        next(batches)
    assert index.shards[error.value.shard].name == shard
    assert not prefetch_threads()


def test_a_cache_that_is_deleted_meanwhile_is_made_again(index: ShardIndex, tmp_path: Path) -> None:
    """By somebody who clears ~/.cache, while a run of weeks reads from it."""
    cache = tmp_path / "some" / "cache"
    s = stream(index, reading=Reading(cache=str(cache)))
    expected = [rows(stream(index).batch(step)) for step in range(6)]
    with contextlib.closing(s.batches(range(6))) as batches:
        for step, batch in enumerate(batches):
            assert rows(batch) == expected[step]
            shutil.rmtree(cache.parent)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"global_batch": 6, "world": 4},
            r"6 is not a positive multiple of the number of ranks 4. Use e\.g\. 8",
        ),
        ({"global_batch": 0}, r"not a positive multiple .* Use e\.g\. 1\."),
        ({"rank": 2, "world": 2}, "rank must be in 0..1"),
        ({"rank": -1, "world": 2}, "rank must be in 0..1 for world size 2, got -1"),
        ({"window": 1}, "window"),
    ],
)
def test_bad_settings(index: ShardIndex, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(index, **options)


@pytest.mark.parametrize("lengths", [[3000], [2] * 30, [1, 1, 1, 50, 1, 2, 1]], ids=["huge", "short", "ones"])
@pytest.mark.parametrize("windows", ["fixed", "random", "packed"])
def test_one_shard_for_many_ranks_and_readers(
    make_shards: MakeShards, lengths: list[int], windows: str
) -> None:
    """Fewer shards than readers, several epochs: every rank gets each step, and together they get every row once."""
    one = make_shards(lengths, 1 << 20)
    assert len(one.shards) == 1

    def run(rank: int, world: int, readers: int) -> list[list[tuple[int, list[int]]]]:
        s = stream(
            one, global_batch=4, windows=windows, rank=rank, world=world, reading=Reading(readers=readers)
        )
        batches = s.iterate()
        found = [rows(next(batches)) for _ in range(2 * s.order.epoch_first(1) // 4 + 2)]
        batches.close()
        return found

    ranks = [run(rank, 4, 1 if rank < 2 else 0) for rank in range(4)]
    whole = run(0, 1, 0)
    assert {len(steps) for steps in ranks} == {len(whole)}
    for step, batch in enumerate(whole):
        assert sorted(row for r in ranks for row in r[step]) == batch


def test_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "glomo" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "glomo" / "shards"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # of a user without an entry
    with pytest.raises(ConfigError, match=r"no home folder.*Set XDG_CACHE_HOME"):
        default_folder()
