"""Signals that come while something must not be left half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glomo_dist.runtime import files
from glomo_dist.runtime.signals import STOP_SIGNALS, as_interrupt, held

ASKED = (signal.SIGINT, *STOP_SIGNALS)


@pytest.fixture(params=["replace", "sync"])
def at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Signals that this process sends itself after each rename, or after each flush, of `files`."""
    to_send: list[int] = []
    where = (os, "replace") if request.param == "replace" else (files, "sync")
    original = getattr(*where)

    def then_signal(*arguments: object) -> None:
        original(*arguments)
        for number in to_send:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(*where, then_signal)
    yield to_send


def write(target: Path) -> None:
    with files.new_folder(target) as folder:
        for name in ("index.json", "a", "b", "c"):
            (folder / name).write_text(name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("number", ASKED)
@pytest.mark.parametrize("there", [False, True], ids=["new", "filled"])
def test_a_folder_is_whole_or_not_there_whenever_the_signal_comes(
    number: signal.Signals, there: bool, at: list[int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    at.append(number)
    with pytest.raises(KeyboardInterrupt), as_interrupt(STOP_SIGNALS):
        write(out)
    at.clear()
    written = names(out) if out.is_dir() else []
    assert written in ([], ["a", "b", "c", "index.json"])
    assert names(tmp_path) in ([], ["out"]), "no temporary folder stays"
    if not written:
        write(out)
        assert names(out) == ["a", "b", "c", "index.json"]


def test_what_came_is_delivered_after_the_block_or_dropped() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("end of the block")
        reached.append("behind it")
    assert reached == ["end of the block"]
    before = [signal.getsignal(number) for number in ASKED]
    with held(drop=True):
        for number in ASKED:
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in ASKED] == before


def test_a_handler_that_is_none_of_pythons_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """getsignal says None of it, and it could not be put back."""
    ask = signal.getsignal
    before = ask(signal.SIGHUP)
    monkeypatch.setattr(signal, "getsignal", lambda n: None if n == signal.SIGHUP else ask(n))
    with held():
        assert ask(signal.SIGHUP) == before != ask(signal.SIGTERM)
    assert ask(signal.SIGHUP) == before


@pytest.mark.parametrize("there", [False, True], ids=["new", "filled"])
def test_what_a_kill_leaves_while_it_is_flushed_goes_with_the_next_command(
    there: bool, tmp_path: Path
) -> None:
    """The flush is what takes long: gigabytes go to disk."""
    out = tmp_path / "out"
    if there:
        out.mkdir()
    program = """
import os, sys
from pathlib import Path
from glomo_dist.runtime import files
files.sync_tree = lambda folder: os.kill(os.getpid(), 9)
with files.new_folder(sys.argv[1]) as folder:
    (folder / "a").write_text("a")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program, str(out)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((out if there else tmp_path).glob(".out.*.tmp"))) == 1
    write(out)
    assert names(out) == ["a", "b", "c", "index.json"] and names(tmp_path) == ["out"]
