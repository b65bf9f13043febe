"""Windows taken from shards: any of them, from shards that are kept open, through the cache."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_samples import MakeShards

from glomo_dist.data import BadShard, Reading, ShardIndex, Stream, read_sample
from glomo_dist.data.reading import gather
from glomo_dist.data.reading.cache import Ids
from glomo_dist.data.reading.gather import Gatherer, Request
from glomo_dist.data.reading.reader import ReaderInProcess
from glomo_dist.data.shards.decode import Layout
from glomo_dist.data.shards.writing import ShardFolder
from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.runtime.errors import GlomoError, RankDied


def stream(index: ShardIndex, **options: Any) -> Stream:
    return Stream(index, **{"window": 16, "seed": 5, "global_batch": 6, **options})


def test_shards_of_one_shape_are_kept_apart_in_the_cache(tmp_path: Path) -> None:
    """Of two with other ids each has its own; what is known of a shard, too, is that of its own index."""
    reading = Reading(cache=str(tmp_path / "cache"))
    samples = ([1, 2, 3], [3, 1]), ([2, 3, 1], [1, 3])
    for number, (longer, shorter) in enumerate(samples):
        writer = ShardFolder(tmp_path / str(number), WordTokenizer(("<unk>", *"abc")), 1 << 20)
        for ids in (longer, shorter):
            writer.add(np.array(ids), {})
        writer.close()
        batch = stream(ShardIndex.read(tmp_path / str(number)), reading=reading).batch(0)
        assert set(map(tuple, batch.tokens.tolist())) == {tuple(longer), (*shorter, 0)}
    index = tmp_path / "1" / "index.json"
    index.write_text(index.read_text().replace('"lengths": [3, 2]', '"lengths": [2, 3]'))
    with pytest.raises(BadShard, match=r"key 000000000\.npy: 3 units, the index says 2"):
        stream(ShardIndex.read(tmp_path / "1"), reading=reading).batch(0)


def test_a_large_shard_is_checked_in_pieces(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glomo_dist.data.shards.decode._PIECE", 5000)
    index = make_shards([20] * 12, 1 << 20)
    gatherer = Gatherer(stream(index).library, index.layout)
    (ids,) = gatherer.gather(asking_for([[(0, 0, 240)]]))
    gatherer.close()
    assert ids.tolist() == np.concatenate([read_sample(index, i) for i in range(12)]).tolist()
    shard, at = Path(str(index.folder)) / index.shards[0].name, int(index.offsets[10])
    content = bytearray(shard.read_bytes())
    content[at] ^= 1
    shard.write_bytes(content)
    unchecked = stream(index, reading=Reading(cache=str(tmp_path / "cache")))
    with pytest.raises(BadShard, match=f"key 000000010: byte {at} is not a tar header"):
        unchecked.batch(0)


def asking_for(rows: list[list[tuple[int, int, int]]]) -> Request:
    """For rows of windows (shard, start, length)."""
    pieces = [(*piece, row) for row, pieces in enumerate(rows) for piece in pieces]
    width = max(sum(length for _, _, length in pieces) for pieces in rows)
    return Request(len(rows), width, *np.array(pieces, np.int64).T)


def test_any_windows_in_any_rows(make_shards: MakeShards) -> None:
    """Also a whole shard, and one long window among many short ones, which is copied in parts."""
    index = make_shards([40] * 8 + [900, 3, 1], 4096)
    shards = [
        np.concatenate([read_sample(index, shard.first + i) for i in range(shard.samples)])
        for shard in index.shards
    ]
    gatherer = Gatherer(stream(index).library, index.layout)
    draw = np.random.default_rng(0)
    in_parts = 0
    for _ in range(300):
        rows: list[list[tuple[int, int, int]]] = []
        for _ in range(draw.integers(1, 5)):
            rows.append([])
            for wanted in draw.choice([1, 2, 3, 4, 900], draw.integers(1, 40), p=[0.3, 0.3, 0.3, 0.08, 0.02]):
                shard = int(draw.integers(len(shards)))
                length = min(int(wanted), len(shards[shard]))
                rows[-1].append((shard, int(draw.integers(len(shards[shard]) - length + 1)), length))
        asked = asking_for(rows)
        matrix = gatherer.gather(asked)
        assert matrix.dtype == np.uint16 and matrix.shape == (len(rows), asked.width)
        for got, row in zip(matrix, rows, strict=True):
            expected = np.concatenate([shards[shard][start : start + length] for shard, start, length in row])
            assert got[: len(expected)].tolist() == expected.tolist() and not got[len(expected) :].any()
        copied = gather._even(asked).length
        assert len(copied) * copied.max() <= 5 * matrix.size, "memory for windows of one width"
        in_parts += len(copied) > len(asked.length)
    assert in_parts > 20, "the test's own check"
    gatherer.close()


def test_the_sixteen_shards_used_last_stay_open(make_shards: MakeShards) -> None:
    index = make_shards([20] * 200, 4096)
    opened: list[int] = []

    def layout(shard: int) -> Layout:
        opened.append(shard)
        return index.layout(shard)

    gatherer = Gatherer(stream(index).library, layout)
    before = len(os.listdir("/proc/self/fd"))
    for shard in (*range(16), 0, 16, 0, 2, 1):
        gatherer.gather(asking_for([[(shard, 0, 5)]]))
    assert opened == [*range(17), 1], "1 was closed for 16, as 0 had been used since"
    gatherer.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_reader_opens_nothing_more(make_shards: MakeShards) -> None:
    """A thread that was planning a step when its stream was closed asks it after that."""
    index = make_shards([40] * 8)
    s = stream(index)
    before = len(os.listdir("/proc/self/fd"))
    s.batch(0)
    reader = ReaderInProcess(s.library, index)
    assert reader.read(asking_for([[(0, 0, 3)]])).tolist() == [[0, 1, 2]]
    reader.close()
    with pytest.raises(RankDied):
        reader.read(asking_for([[(0, 0, 3)]]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_cache_that_cannot_be_written_is_not_the_shards_fault(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems promise room that they have not."""
    s = stream(make_shards([9000]), reading=Reading(cache=str(tmp_path)))  # more than a file's buffer
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(
            GlomoError, match=r"cache.* for shard-00000\.tar: File too large\. Free space"
        ) as e:
            s.batch(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert type(e.value) is GlomoError


def test_a_reader_that_cannot_be_started_says_why(make_shards: MakeShards) -> None:
    index = make_shards([40] * 8)
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = len(os.listdir("/proc/self/fd"))
    for more in (0, 3):  # none for its socket, too few for its process
        batches = stream(index, reading=Reading(readers=2)).iterate()
        resource.setrlimit(resource.RLIMIT_NOFILE, (now + more, most))
        try:
            with pytest.raises(GlomoError, match=r"cannot be started: Too many open files\. .*ulimit -n"):
                next(batches)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def test_a_cache_that_is_smaller_than_a_shard(make_shards: MakeShards, tmp_path: Path) -> None:
    """10,000 units of two bytes and their SHA-256, in 20 kB."""
    s = stream(make_shards([10_000]), reading=Reading(cache=str(tmp_path), cache_gb=2e-5))
    with pytest.raises(
        GlomoError, match=r"may hold 20,000 bytes; a shard of 20,032 bytes.*reading\.cache_gb"
    ):
        s.batch(0)


def test_a_cache_of_two_shards_is_enough(make_shards: MakeShards, tmp_path: Path) -> None:
    """A reader gives back what it holds itself before it waits for others to do so."""
    index = make_shards([20] * 40, 4096)
    room = 2 * max(2 * shard.tokens + 32 for shard in index.shards) + 1
    reading = Reading(cache=str(tmp_path / "cache"), cache_gb=room / 1e9)
    gatherer = Gatherer(stream(index, reading=reading).library, index.layout)
    for shard in (0, 1, 2, 0):
        first = index.shards[shard].first
        assert gatherer.gather(asking_for([[(shard, 0, 3)]])).tolist() == [[first, first + 1, first + 2]]
    assert len(list((tmp_path / "cache").glob("*.ids"))) == 2
    gatherer.close()


def test_a_cache_that_others_write_to(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_shards([20] * 20, 4096)
    monkeypatch.setattr(Ids, "changed", lambda _: True)
    gatherer = Gatherer(stream(index).library, index.layout)
    with pytest.raises(GlomoError, match=rf"cache of shard {index.shards[2].name} is being written to"):
        gatherer.gather(asking_for([[(2, 0, 5)]]))
    gatherer.close()


def test_ids_of_more_than_two_bytes(tmp_path: Path) -> None:
    ids = [69_999, 5, 65_536]
    words = WordTokenizer(("<unk>", *(f"w{i}" for i in range(1, 70_000))))
    writer = ShardFolder(tmp_path / "shards", words, 8192)
    writer.add(np.array(ids), {"source": "made", "row": 0})
    writer.close()
    batch = stream(ShardIndex.read(tmp_path / "shards"), global_batch=1).batch(0)
    assert batch.tokens.tolist() == [ids]


def test_a_local_shard_has_all_the_time_it_needs(make_shards: MakeShards) -> None:
    index = make_shards([40] * 8)
    hurried = stream(index, reading=Reading(retry_seconds=1e-9)).batch(0)
    assert (hurried.tokens == stream(index).batch(0).tokens).all()
