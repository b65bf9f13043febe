"""Signals that come before there are ranks to tell."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from pretrain_samples import TINY

from glomo_dist.pretrain import launch, pretrain
from glomo_dist.pretrain.ranks.stopping import ending_at_once
from glomo_dist.runtime.errors import Interrupted
from glomo_dist.runtime.signals import ASKING


@pytest.mark.parametrize("number", ASKING)
@pytest.mark.parametrize("torchrun", [False, True])
def test_a_signal_before_the_ranks_are_started_ends_the_command_as_documented(
    number: signal.Signals, torchrun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the index is read, say from far away: the exit code is that of a run that was asked to stop."""
    monkeypatch.setattr(launch, "resolve", lambda *_: os.kill(os.getpid(), number))
    monkeypatch.setattr(launch, "started_by_torchrun", lambda: torchrun)
    before = [signal.getsignal(n) for n in ASKING]
    with pytest.raises(
        Interrupted, match=rf"{number.name} stopped .*run before it began to train. Run the same"
    ) as e:
        pretrain(TINY, "shards", tmp_path / "run")
    assert e.value.exit_code == 75 and not (tmp_path / "run").exists()
    assert [signal.getsignal(n) for n in ASKING] == before


def test_what_is_ignored_stays_ignored_and_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with ending_at_once("run"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN
    seen = []

    def elsewhere() -> None:
        with ending_at_once("run"):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
