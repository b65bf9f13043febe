"""prepare that is stopped, killed or fails: what is left, and who is told."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from web_faults import serving, stall

from glomo_dist.data import (
    ShardIndex,
    prepare_text,
)
from glomo_dist.data.preparing.parallel import ordered_map
from glomo_dist.data.shards.writing import ShardFolder
from glomo_dist.runtime.errors import DataError, GlomoError


def test_failures_leave_nothing_behind(corpus: str, tmp_path: Path) -> None:
    with open(corpus, "a") as f:
        f.write('{"text": ')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 121: not valid JSON"):
        prepare_text([corpus], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_in_a_worker_comes_where_its_result_would() -> None:
    lengths = ordered_map(len, ["a", "bc", 3, "d"], 2)
    assert [next(lengths), next(lengths)] == [1, 2]
    with pytest.raises(TypeError, match="'int' has no len"):
        next(lengths)


def test_an_input_that_cannot_be_used_while_workers_are_busy(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="has no text in it"):
        prepare_text([corpus, str(tmp_path / "empty.txt")], tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def _killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error() -> None:
    with pytest.raises(GlomoError, match=r"a worker process died .* fewer --workers"):
        list(ordered_map(_killed, range(20), 2))


@pytest.mark.parametrize("more", [0, 7])  # too few to speak with workers; to start one
def test_a_worker_that_cannot_be_started_is_an_error(more: int) -> None:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(len(used) + more + 1) if number not in used]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], most))
        with pytest.raises(
            GlomoError, match=r"worker process cannot be started: Too many open files\. .*ulimit -n"
        ):
            list(ordered_map(len, ["a"], 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python looks into the current folder first")
def test_workers_import_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit('a file of the user, called like one of Python')")
    monkeypatch.chdir(tmp_path)
    assert list(ordered_map(len, ["a", "bc"], 2)) == [1, 2]


MAPPER = """
import time
from glomo_dist.data.preparing.parallel import ordered_map
if __name__ == "__main__":
    for _ in ordered_map(time.sleep, [0.0] * 1000 + [3600.0], 2):
        print("x", flush=True)
"""


def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    (tmp_path / "mapper.py").write_text(MAPPER)
    command = [sys.executable, str(tmp_path / "mapper.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "x\n"
        children = psutil.Process(process.pid).children()
        process.kill()
    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=30)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_command_leaves_nothing_or_what_the_next_removes(
    number: signal.Signals, corpus: str, tmp_path: Path
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.txt").write_text("begun\n" * 500)
    with serving(tmp_path / "web") as server:
        server.always["a.txt"] = stall
        sources = [corpus, f"{server.address}/a.txt"]
        command = [sys.executable, "-m", "glomo_dist.cli", "prepare", "text", *sources, "--out"]
        with subprocess.Popen(
            [*command, str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number == signal.SIGHUP else None,
        ) as process:  # under nohup SIGHUP would be ignored
            while not server.asked["a.txt"]:
                time.sleep(0.05)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
    left = list(tmp_path.glob(".*"))
    if number == signal.SIGKILL:
        assert len(left) == 1
        prepare_text([corpus], tmp_path / "out")
    else:
        assert process.returncode == 130 and "glomo: stopped." in said and not left
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["preparing.spool.Spool.add", "shards.writing.ShardFolder.add"])
def test_full_disk_in_the_middle(
    name: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(f"glomo_dist.data.{name}", full)
    with pytest.raises(GlomoError, match=r"cannot write .*out: No space left on device\. Free space"):
        prepare_text([corpus], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_put_aside_cannot_be_deleted(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tidy(*_: object) -> None:
        """As a program does that clears large files away."""
        for path in tmp_path.glob(".*.tmp/*"):
            if path.stat().st_size > 1000:
                path.unlink()

    undisturbed = ShardIndex.read(prepare_text([corpus], tmp_path / "undisturbed"))
    monkeypatch.setattr("glomo_dist.data.prepare.uncut", tidy)
    assert ShardIndex.read(prepare_text([corpus], tmp_path / "out")).fingerprint == undisturbed.fingerprint


@pytest.mark.parametrize("name", ["add", "close"])
def test_a_folder_that_is_deleted_while_it_is_written(
    name: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = getattr(ShardFolder, name)

    def tidy(*arguments: object) -> None:
        for folder in tmp_path.glob(".*.tmp"):
            shutil.rmtree(folder)
        method(*arguments)

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(ShardFolder, name, tidy)
    with pytest.raises(GlomoError, match=r"cannot write .*out: something deleted it meanwhile\. Run the"):
        prepare_text([corpus], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
