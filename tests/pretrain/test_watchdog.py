"""The process beside a rank: what it takes a rank for. How it ends one that hangs: test_faults.py."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glomo_dist.pretrain.ranks import watchdog


def test_a_process_that_goes_while_it_is_looked_at_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc was read twice, and the second answer taken for as long as the first: the watchdog died of that."""
    answers = iter([["S", "1"], []])
    monkeypatch.setattr(watchdog, "_stat", lambda pid: next(answers))
    assert watchdog._state(1) == "S" and watchdog._state(1) == ""


@pytest.mark.parametrize(("timeout", "first"), [(2.0, 900.0), (1200.0, 1200.0)])
def test_compiling_is_excused_until_the_first_step_is_done_and_waiting_for_data_never(
    timeout: float, first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for what comes after the part that is told of."""
    out, into = os.pipe()
    monkeypatch.setattr(watchdog.Watchdog, "_start", lambda self: setattr(self, "_to", into))
    dog = watchdog.Watchdog(timeout, 0, [], None)
    passes = ["forward", "backward"] * 2
    for part in ("other", "data", *passes, "optimizer", "other", "data", "forward"):
        dog.beat(part, 1)
    os.close(into)
    with open(out) as told:
        lines = [line.split() for line in told]
    limits = [first, timeout, *[first] * 5, *[timeout] * 4]
    assert [float(limit) for limit, _, _ in lines] == limits
    assert [(step, part) for _, step, part in lines][:3] == [("0", "begin"), ("1", "other"), ("1", "data")]


def python_is(script: str, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shell script stand for Python in what is started from here."""
    at.write_text(f"#!/bin/sh\n{script}\n")
    at.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(at))


@pytest.fixture
def no_stacks() -> Iterator[None]:
    yield
    faulthandler.unregister(watchdog.STACKS)


@pytest.mark.usefixtures("no_stacks")
def test_what_python_needs_to_start_it_gets_and_is_no_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python with a shared library of its own found that nowhere."""
    found = tmp_path / "found"
    python_is(f'env > {found}; exec {sys.executable} "$@"', tmp_path / "python", monkeypatch)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/python")
    monkeypatch.setenv("RANK", "3")
    watchdog.Watchdog(60.0, 3, [], None).close()
    names = {line.partition("=")[0] for line in found.read_text().splitlines()}
    assert "LD_LIBRARY_PATH" in names and "RANK" not in names


@pytest.mark.usefixtures("no_stacks")
def test_one_that_cannot_start_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each beat said that it was killed, started another, and left a file open."""
    python_is("exit 127", tmp_path / "python", monkeypatch)
    before, said = len(os.listdir("/proc/self/fd")), ""
    dog = watchdog.Watchdog(60.0, 0, [], None)
    until = time.monotonic() + 20
    while "unwatched" not in said:
        dog.beat("data")
        said += capfd.readouterr().err
        assert time.monotonic() < until, said
    dog.beat("forward")
    dog.close()
    assert said.count("WARNING: the watchdog of rank 0 ended with exit code 127") == 3
    assert not capfd.readouterr().err and len(os.listdir("/proc/self/fd")) == before + 1


@pytest.mark.usefixtures("no_stacks")
def test_one_that_has_worked_is_always_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    python_is("exit 1", tmp_path / "python", monkeypatch)
    monkeypatch.setattr(watchdog, "WORKED_SECONDS", -1.0)
    dog, said = watchdog.Watchdog(60.0, 0, [], None), ""
    until = time.monotonic() + 20
    while said.count("another one takes its place") <= watchdog.STARTS:
        dog.beat("data")
        said += capfd.readouterr().err
        assert time.monotonic() < until, said
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    while "unwatched" not in said:
        dog.beat("data")
        said += capfd.readouterr().err
        assert time.monotonic() < until, said
    assert "ended with exit code 1 and no other can be started ([Errno 2]" in said
    dog.close()


def guard(monkeypatch: pytest.MonkeyPatch, **states: str) -> watchdog._Guard:
    """Of process 10, whose peers are 11 and 12; states as /proc names them."""
    monkeypatch.setattr(watchdog, "_state", lambda pid: states.get(f"p{pid}", "S"))
    return watchdog._Guard(pid=10, parent=1, rank=0, timeout=5.0, stacks=0, notice="", peers=[11, 12])


def test_why_a_rank_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = guard(monkeypatch)
    watched._limit, watched._idle = 900.0, 899.0
    assert watched._reason() is None
    watched._idle = 901.0
    assert watched._reason() == ("no progress for 901 s (limit 900 s)", True)
    watched._idle, watched._stopped = 0.0, {10: 0.0, 12: 4.9}
    assert watched._reason() is None
    watched._stopped = {10: 0.0, 12: 5.1}  # also while it starts
    assert watched._reason() == ("process 12 of another rank is stopped (SIGSTOP) for 5 s (limit 5 s)", True)
    watched._stopped = {10: 5.1}
    assert watched._reason() == ("it is stopped (SIGSTOP) for 5 s (limit 5 s)", True)
    watched._open = False  # the rank has nothing left to wait for
    assert watched._reason() is None


@pytest.mark.parametrize("state", ["Z", "X", ""])
def test_a_rank_that_waits_for_a_dead_one_has_to_go(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = guard(monkeypatch, p12=state)
    watched._limit, watched._idle = 900.0, watchdog.DEAD_PEER_SECONDS - 0.1
    assert watched._reason() is None, "it may be the end of the run"
    watched._idle = watchdog.DEAD_PEER_SECONDS + 0.1
    assert watched._reason() == ("process 12 of another rank has died", False)


def test_a_rank_that_was_killed_has_no_stacks_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its pipe was taken for stacks, and "stacks:" said without any."""
    watched, said = guard(monkeypatch), []
    watched._stacks, into = os.pipe()
    monkeypatch.setattr(watched, "_say", said.append)
    os.write(into, b"File x\n")
    os.close(into)
    for _ in range(2):
        watched._show_stacks()
    os.close(watched._stacks)
    assert said == ["stacks:\nFile x"]
