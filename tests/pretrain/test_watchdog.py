"""The process beside a rank: what it takes a rank for. How it ends one that hangs: test_faults.py."""

from __future__ import annotations

import pytest

from glomo_dist.pretrain.ranks import watchdog


def test_a_process_that_goes_while_it_is_looked_at_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc was read twice, and the second answer taken for as long as the first: the watchdog died of that."""
    answers = iter([["S", "1"], []])
    monkeypatch.setattr(watchdog, "_stat", lambda pid: next(answers))
    assert watchdog._state(1) == "S" and watchdog._state(1) == ""
