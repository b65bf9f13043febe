"""Reader processes: killed, stopped, left alone by their rank; and shards that are set aside."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_samples import MakeShards
from web_faults import serving, stall

from glomo_dist.data import Reading, ShardIndex, Stream
from glomo_dist.data.reading import gather
from glomo_dist.runtime.errors import GlomoError, RankDied, ShardError
from glomo_dist.runtime.processes import import_path


@pytest.fixture
def index(make_shards: MakeShards) -> ShardIndex:
    return make_shards([20, 30, 7, 2, 50, 33] * 8, 16_384)


def stream(index: ShardIndex, **options: Any) -> Stream:
    reading = Reading(**options.pop("reading", {}))
    return Stream(index, **{"window": 10, "seed": 3, "global_batch": 4, "reading": reading, **options})


def readers_of(pid: int) -> list[int]:
    """Process ids of the readers that are children of process `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or b"data.reading.reader" not in (entry / "cmdline").read_bytes():
                continue
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return found


def until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_readers_are_processes_and_end_with_the_iterator(index: ShardIndex) -> None:
    batches = stream(index, reading={"readers": 3}).iterate()
    next(batches)
    mine = readers_of(os.getpid())
    assert len(mine) == 3
    for pid in mine:  # no rank, and without what makes a rank heavy
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"\0RANK=" not in environment
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    batches.close()
    assert not readers_of(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_killed_reader_is_an_error_at_once(index: ShardIndex, number: signal.Signals) -> None:
    batches = stream(index, reading={"readers": 2, "prefetch": 2}).iterate()
    next(batches)
    os.kill(readers_of(os.getpid())[0], number)
    began = time.monotonic()
    with pytest.raises(
        RankDied, match=rf"a reader process \(pid \d+\) was killed by {number.name}.*shard-0000"
    ):
        for _ in range(20):
            next(batches)
    assert time.monotonic() - began < 3
    assert not readers_of(os.getpid())


def test_a_killed_reader_names_few_of_its_shards(make_shards: MakeShards) -> None:
    index = make_shards([20] * 200, 4096)
    batches = stream(index, global_batch=64, reading={"readers": 1, "prefetch": 1}).iterate()
    next(batches)
    os.kill(readers_of(os.getpid())[0], 40)  # it has no name
    with pytest.raises(
        RankDied,
        match=r"was killed by signal 40 while it read from (shard-\d+\.tar(, )?){3} and \d+ more\. Run",
    ):
        for _ in range(4):
            next(batches)


@pytest.mark.parametrize("readers", [0, 1])
def test_too_many_open_files_are_an_error_that_says_so(
    make_shards: MakeShards, tmp_path: Path, readers: int
) -> None:
    s = stream(
        make_shards([20] * 200, 4096),
        global_batch=256,
        reading={"readers": readers, "prefetch": 1, "cache": str(tmp_path / "cache")},
    )
    for _ in s.batches(range(2)):  # all shards are in the cache
        pass
    batches = s.iterate()
    with contextlib.closing(batches):
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = (len(os.listdir("/proc/self/fd")) + 4, before[1])
        if not readers:
            resource.setrlimit(resource.RLIMIT_NOFILE, few)
        try:
            if readers:
                next(batches)
                resource.prlimit(readers_of(os.getpid())[0], resource.RLIMIT_NOFILE, (8, before[1]))
            with pytest.raises(
                GlomoError, match=r"cache.* for shard-\d+\.tar: Too many open files\..*ulimit -n"
            ) as e:
                for _ in range(4):
                    next(batches)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert type(e.value) is GlomoError, "neither the shard nor the reader is at fault"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_shard_that_cannot_be_opened_for_want_of_files_is_not_bad(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(gather, "open_place", none_left)
    with pytest.raises(GlomoError, match=r"shard-\d+\.tar cannot be read: Too many.*ulimit -n") as e:
        stream(index, reading={"readers": 0, "cache": str(tmp_path)}).batch(0)
    assert type(e.value) is GlomoError


def test_signals_to_the_whole_group_do_not_end_readers(index: ShardIndex) -> None:
    """SIGTERM before pre-emption reaches every process of a job; the rank still needs its batches to end well."""
    batches = stream(index, reading={"readers": 1}).iterate()
    next(batches)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.kill(readers_of(os.getpid())[0], number)
    for _ in range(12):
        next(batches)
    batches.close()


PROGRAM = """
import sys, threading, time
from glomo_dist.data import ShardIndex, Stream, Reading
reading = Reading(readers=2, cache=sys.argv[2])
batches = Stream(ShardIndex.read(sys.argv[1]), window=10, seed=3, global_batch=4, reading=reading).iterate()
first = threading.Thread(target=next, args=(batches,), daemon=True)
first.start()
if len(sys.argv) == 3:
    first.join()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("busy", [False, True], ids=["waiting", "downloading"])
def test_readers_end_when_their_rank_is_killed(index: ShardIndex, tmp_path: Path, busy: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": import_path()}
    with serving(Path(str(index.folder))) as server:
        for shard in index.shards:
            server.always[shard.name] = stall
        source = [server.address, str(tmp_path), "busy"] if busy else [str(index.folder), str(tmp_path)]
        rank = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *source], env=environment, stdout=subprocess.PIPE
        )
        assert rank.stdout is not None and rank.stdout.readline() == b"ready\n"
        if busy:
            until(lambda: any(server.asked[shard.name] for shard in index.shards))
        mine = readers_of(rank.pid)
        assert len(mine) == 2
        rank.kill()
        rank.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine), 5.0)


def test_closing_does_not_wait_for_a_download(index: ShardIndex, tmp_path: Path) -> None:
    with serving(Path(str(index.folder))) as server:
        for shard in index.shards:
            server.always[shard.name] = stall
        batches = stream(
            ShardIndex.read(server.address), reading={"readers": 2, "cache": str(tmp_path)}
        ).iterate()
        threading.Timer(
            1.5, lambda: [os.kill(pid, signal.SIGKILL) for pid in readers_of(os.getpid())[:1]]
        ).start()
        began = time.monotonic()
        with pytest.raises(GlomoError, match="SIGKILL"):
            next(batches)
        assert time.monotonic() - began < 6


def test_local_damage_is_found_at_the_next_opening_without_waiting(index: ShardIndex, tmp_path: Path) -> None:
    path = Path(str(index.folder)) / index.shards[0].name
    path.write_bytes(path.read_bytes().replace(b"\x93NUMPY", b"\x93NUMPX", 1))
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"shard-00000\.tar, key 000000000.*not a plain numpy"):
        batches = stream(index, reading={"cache": str(tmp_path)}).iterate()
        for _ in range(100):
            next(batches)
    assert time.monotonic() - began < 5


def test_what_is_cached_is_safe_from_later_damage(index: ShardIndex, tmp_path: Path) -> None:
    s = stream(index, reading={"cache": str(tmp_path), "readers": 0})
    steps = range(s.order.per_epoch // 4 + 1)
    before = [s.batch(step).tokens.tolist() for step in steps]
    for shard in index.shards:
        (Path(str(index.folder)) / shard.name).write_bytes(b"gone")
    assert [s.batch(step).tokens.tolist() for step in steps] == before


def test_a_flipped_bit_in_the_cache_of_a_running_reader_never_comes_out(
    index: ShardIndex, tmp_path: Path
) -> None:
    s = stream(index, reading={"cache": str(tmp_path), "readers": 0, "prefetch": 1})
    expected = [s.batch(step).tokens.tolist() for step in range(30)]
    batches = s.iterate()
    for step in range(30):
        if step % 3 == 1:
            time.sleep(0.02)
            for file in tmp_path.glob("*.ids"):
                content = bytearray(file.read_bytes())
                with open(file, "r+b") as f:
                    f.write(bytes(byte ^ 1 for byte in content[:-32]))
        assert next(batches).tokens.tolist() == expected[step]


@pytest.mark.parametrize("windows", ["fixed", "random", "packed"])
def test_shards_set_aside_are_replaced_on_every_rank_alike(index: ShardIndex, windows: str) -> None:
    whole = stream(index, windows=windows)
    bad = {0: 0, 2: 5}
    steps = range(whole.order.epoch_first(2) // 4)

    def run(world: int) -> list[list[tuple[int, list[tuple[str, str, int, int]]]]]:
        found = []
        streams = [stream(index, windows=windows, rank=rank, world=world) for rank in range(world)]
        for s in streams:
            for shard, since in bad.items():
                for step in (since + 7, since, since + 3):  # the earliest counts
                    s.set_aside(shard, step)
        for step in steps:
            rows = []
            for numbers, pieces in (s._plan(step) for s in streams):
                assert (np.unique(pieces.row) == np.arange(len(numbers))).all(), "every row holds something"
                assert (np.diff(pieces.row) >= 0).all()
                for place, number in enumerate(numbers.tolist()):
                    inside = pieces.row == place
                    rows.append((number, list(zip(*(a[inside].tolist() for a in pieces[1:]), strict=True))))
            found.append(sorted(rows))
        return found

    once = run(1)
    assert run(2) == once and run(4) == once, "the global batches do not depend on the number of ranks"
    changed = 0
    for step in steps:
        numbers, pieces = whole._plan(step)
        for place, (number, content) in enumerate(once[step]):
            shards = {int(index.shard_of_sample[sample]) for sample, _, _ in content}
            assert number == numbers[place]
            assert not any(bad.get(shard, 1 << 40) <= step for shard in shards)
            inside = pieces.row == place
            original = list(zip(*(a[inside].tolist() for a in pieces[1:]), strict=True))
            good = [p for p in original if bad.get(int(index.shard_of_sample[p[0]]), 1 << 40) > step]
            if good:
                assert content == good, "what can be read is read as ever"
            else:
                changed += 1
    assert changed > 5


def test_all_shards_set_aside(index: ShardIndex) -> None:
    s = stream(index)
    for shard in range(len(index.shards)):
        s.set_aside(shard, 0)
    with pytest.raises(ShardError, match=f"too few good shards are left; {len(index.shards)} are set aside"):
        s.batch(0)
