"""The cache of checked ids: bounded, shared, and whole whatever is killed or damaged."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from cache_jobs import key_of, use

from glomo_dist.data.reading.cache import ShardCache
from glomo_dist.runtime.errors import GlomoError, ShardError
from glomo_dist.runtime.processes import import_path

SIZE = 10_000
WHOLE = SIZE + 32  # with its SHA-256


def cache(folder: Path, files: int, patience: float = 20.0) -> ShardCache:
    return ShardCache(folder, files * WHOLE, patience)


def kept(folder: Path) -> list[str]:
    return sorted(p.stem.rstrip("0") for p in folder.glob("*.ids"))


@pytest.fixture
def jobs() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for job in started:
        job.kill()
        job.wait()


def start(
    jobs: list[subprocess.Popen[str]], folder: Path, files: int, key: str, how: str
) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": import_path()}
    command = [sys.executable, str(Path(__file__).with_name("cache_jobs.py"))]
    command += [str(folder), str(files * WHOLE), key, str(SIZE), how]
    jobs.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    return jobs[-1]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "some" / "cache"
    shards = cache(folder, 3)
    assert not folder.stat().st_mode & 0o077, "the ids of a corpus are nobody else's"
    for key in ("a", "b", "c", "a", "d"):
        use(shards, key, SIZE).close()
        time.sleep(0.02)  # times of use are those of files
    assert kept(folder) == ["a", "c", "d"]
    assert capfd.readouterr().out.split() == ["made", "a", "made", "b", "made", "c", "made", "d"]


@pytest.mark.parametrize("late", [False, True], ids=["before it is opened", "before it is locked"])
def test_what_another_has_deleted_meanwhile_makes_room_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """A reader that finds a damaged file deletes it, whoever is making room."""
    shards, opened = cache(tmp_path, 2), os.open
    for key in ("a", "b"):
        use(shards, key, SIZE).close()

    def open_deleted(path: Path, *how: int) -> int:
        file = opened(path, *how) if late else -1
        if path.name == f"{key_of('a')}.ids":
            path.unlink()
        return file if late else opened(path, *how)

    monkeypatch.setattr(os, "open", open_deleted)
    use(shards, "c", SIZE).close()
    assert kept(tmp_path) == ["b", "c"]


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    shards = cache(tmp_path, 2, patience=0.2)
    held = use(shards, "a", SIZE)
    for key in ("b", "c"):
        use(shards, key, SIZE).close()
    assert kept(tmp_path) == ["a", "c"]
    other = use(shards, "c", SIZE)
    with pytest.raises(GlomoError, match=r"may hold 20,064 bytes.*does not fit.*reading\.cache_gb"):
        use(shards, "d", SIZE)
    other.close()
    use(shards, "d", SIZE).close()
    assert kept(tmp_path) == ["a", "d"] and not list(tmp_path.glob("*.tmp"))
    held.close()
    with pytest.raises(GlomoError, match="does not fit"):
        use(shards, "e", 3 * SIZE)


def test_one_makes_it_and_the_others_wait(tmp_path: Path, jobs: list[subprocess.Popen[str]]) -> None:
    several = [start(jobs, tmp_path, 4, "a", "once") for _ in range(4)]
    said = [job.communicate(timeout=60)[0] for job in several]
    assert sorted(said) == ["", "", "", "made a\n"] and not any(job.returncode for job in several)


def test_what_another_has_made_meanwhile_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, waited_for = threading.Event(), threading.Event()
    made = []

    def make(file: BinaryIO) -> bytes:
        made.append(file.name)
        making.set()
        assert waited_for.wait(20)
        file.write(bytes(SIZE))
        return hashlib.sha256(bytes(SIZE)).digest()

    shards = cache(tmp_path, 2)
    wanted = partial(shards.open, key_of("a"), np.dtype(np.uint8), SIZE, make, lambda: False, "shard a")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(wanted)
        assert making.wait(20)
        monkeypatch.setattr("glomo_dist.data.reading.cache.time.sleep", lambda _: waited_for.set())
        for held in (pool.submit(wanted), first):
            held.result().close()
    assert len(made) == 1


def test_what_others_keep_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    theirs = [
        tmp_path / name for name in ("draft.tmp", f".{key_of('a')}.0123abcd.tmp", "crew.ids", "notes.txt")
    ]
    for path in theirs:
        path.write_bytes(bytes(SIZE))
    (tmp_path / "folder.tmp").mkdir()
    for key in ("a", "b"):
        use(cache(tmp_path, 1), key, SIZE).close()
    assert kept(tmp_path) == ["b", "crew"] and all(path.exists() for path in theirs)


def test_what_could_not_be_made_takes_no_room(tmp_path: Path) -> None:
    def broken(file: BinaryIO) -> bytes:
        raise ShardError("its SHA-256 is wrong")

    with pytest.raises(ShardError, match="its SHA-256"):
        cache(tmp_path, 2).open(key_of("a"), np.dtype(np.uint8), SIZE, broken, lambda: False, "shard a")
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".ids", ".tmp")]


def test_what_is_cleared_while_it_is_made_is_made_again(tmp_path: Path) -> None:
    folder, made = tmp_path / "cache", []

    def make(file: BinaryIO) -> bytes:
        made.append(file.name)
        if len(made) == 1:
            shutil.rmtree(folder)
        file.write(bytes(SIZE))
        return hashlib.sha256(bytes(SIZE)).digest()

    held = cache(folder, 2).open(key_of("a"), np.dtype(np.uint8), SIZE, make, lambda: False, "shard a")
    assert held.ids.tobytes() == bytes(SIZE) and len(made) == 2
    held.close()


def test_killed_while_making(tmp_path: Path, jobs: list[subprocess.Popen[str]]) -> None:
    for key in ("a", "b", "b"):
        job = start(jobs, tmp_path, 4, key, "slow")
        assert job.stdout is not None and job.stdout.readline() == "making\n"
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert not kept(tmp_path) and len(list(tmp_path.glob("*.tmp"))) == 1, "b has removed what is left"
    (tmp_path / f"{key_of('b')}.lock").unlink()
    use(cache(tmp_path, 2), "a", SIZE).close()  # finds room too: what the killed ones left does not count
    use(cache(tmp_path, 2), "c", SIZE).close()
    assert kept(tmp_path) == ["a", "c"] and not list(tmp_path.glob("*.tmp"))


def test_what_is_being_made_stays_and_takes_its_room(
    tmp_path: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    job = start(jobs, tmp_path, 1, "a", "slow")
    assert job.stdout is not None and job.stdout.readline() == "making\n"
    with pytest.raises(GlomoError, match="does not fit"):
        use(cache(tmp_path, 1, patience=0.1), "b", SIZE)
    assert len(list(tmp_path.glob(f"{key_of('a')}.*.tmp"))) == 1 and not kept(tmp_path)


def test_a_process_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    job = start(jobs, tmp_path, 4, "a", "slow")
    assert job.stdout is not None and job.stdout.readline() == "making\n"
    with pytest.raises(GlomoError, match=r"another process has held .*a0*\.lock for 0\.3 s"):
        use(cache(tmp_path, 4, patience=0.3), "a", SIZE)


def test_what_another_process_holds_is_not_deleted(tmp_path: Path, jobs: list[subprocess.Popen[str]]) -> None:
    job = start(jobs, tmp_path, 2, "a", "hold")
    assert job.stdout is not None and [job.stdout.readline() for _ in range(2)] == ["made a\n", "holding\n"]
    shards = cache(tmp_path, 2)
    for key in ("b", "c", "d"):
        use(shards, key, SIZE).close()
    assert kept(tmp_path) == ["a", "d"]
    job.send_signal(signal.SIGKILL)
    job.wait()
    for key in ("e", "f"):
        use(shards, key, SIZE).close()
    assert kept(tmp_path) == ["e", "f"]


def test_many_processes_in_a_small_cache_and_some_killed(
    tmp_path: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    """Five processes in room for six of twelve shards; two are killed on the way. The bound holds throughout."""
    working = [start(jobs, tmp_path, 6, str(seed), "loop") for seed in range(5)]
    largest, killed = 0, 0
    began = time.monotonic()
    while any(job.poll() is None for job in working):
        files = [p for p in (tmp_path.iterdir() if tmp_path.exists() else ()) if p.suffix in (".ids", ".tmp")]
        sizes = []
        for file in files:
            try:
                sizes.append(file.stat().st_size)
            except FileNotFoundError:
                continue
        largest = max(largest, sum(sizes))
        if killed < 2 and len(files) > 3:
            working[killed].send_signal(signal.SIGKILL)
            killed += 1
        assert time.monotonic() - began < 60
    assert [job.returncode for job in working[2:]] == [0, 0, 0]
    # a listing is no snapshot: a file may be seen whose successor is seen as well
    assert 3 * WHOLE < largest <= 8 * WHOLE
    use(cache(tmp_path, 6), "c", SIZE).close()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 6 * WHOLE


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty", "hash"])
def test_damage_is_found_and_mended(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    shards = cache(tmp_path, 4)
    use(shards, "a", SIZE).close()
    path = tmp_path / f"{key_of('a')}.ids"
    content = bytearray(path.read_bytes())
    if damage in ("flip", "hash"):
        content[5000 if damage == "flip" else -1] ^= 1
    path.write_bytes({"cut": content[:-1], "longer": content + b"x", "empty": b""}.get(damage, content))
    use(shards, "a", SIZE).close()
    said = capfd.readouterr()
    assert "WARNING" in said.err and f"{path.name} was damaged" in said.err and said.out.count("made a") == 2


def test_a_change_while_in_use_is_seen(tmp_path: Path) -> None:
    held = use(cache(tmp_path, 4), "a", SIZE)
    assert not held.changed()
    path = tmp_path / f"{key_of('a')}.ids"
    before = os.stat(path)
    time.sleep(0.02)  # times of files come in steps of a few milliseconds
    with open(path, "r+b") as file:
        file.write(b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert held.changed()
    held.close()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GlomoError, match=r"cannot use the cache .*file.*reading\.cache"):
        ShardCache(tmp_path / "file" / "cache", 1, 1.0)


def test_a_full_disk_is_named_and_nothing_is_left_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(GlomoError, match=rf"cannot use the cache of shards {tmp_path} for shard a: No space"):
        use(cache(tmp_path, 2), "a", SIZE)
    assert not list(tmp_path.glob("*.tmp"))
