"""The process beside a rank: what it takes a rank for. How it ends one that hangs: test_faults.py."""

from __future__ import annotations

import os

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
