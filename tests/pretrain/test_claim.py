"""One run at a time writes to a run folder."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pretrain_samples import TINY

from glomo_dist.pretrain import pretrain
from glomo_dist.pretrain.output.claim import locked
from glomo_dist.pretrain.output.saving import Saver
from glomo_dist.runtime.errors import GlomoError


def test_second_run_in_the_same_folder_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    owner = rf"another run is writing to {out} \(process {os.getpid()} on {socket.gethostname()}, since 20"
    with locked(out) as first, pytest.raises(GlomoError, match=owner):
        pretrain(TINY, tiny_shards, out, 2)
    with locked(out) as second:
        second.check()  # its mark has taken the place of the first one's, which is that of no other run
        with pytest.raises(GlomoError, match="another run has taken"):
            first.check()


def test_a_link_to_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    with locked(tmp_path / "run"):
        assert (tmp_path / "disk" / "run").is_dir()


def test_a_disk_that_is_full_before_the_run_begins_is_named(tmp_path: Path) -> None:
    """Python ignores the signal that comes with this limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        named = rf"cannot write {tmp_path}/\.lock: File too large"
        with pytest.raises(GlomoError, match=named), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_notices_that_another_has_taken_its_folder(tmp_path: Path) -> None:
    """Where locks do not hold between hosts, the mark in the file does."""
    with locked(tmp_path) as claim:
        claim.check()
        (tmp_path / ".lock").write_text("other-host 17 2030-01-01T00:00:00 0123")
        with pytest.raises(
            GlomoError, match=r"another run has taken .* \(process 17 on other-host, since 2030"
        ):
            claim.check()
        (tmp_path / ".lock").write_bytes(b"\xff\xfe")  # it was a UnicodeDecodeError
        with pytest.raises(GlomoError, match=r"another run has taken .* \(unknown\)"):
            claim.check()
        with pytest.raises(GlomoError, match=r"is writing to .* \(unknown\)"), locked(tmp_path):
            pass
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").mkdir()  # which cannot be read
        with pytest.raises(GlomoError, match=r"another run has taken .* \(unknown\)"):
            claim.check()


def test_a_run_whose_folder_is_moved_away_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with locked(out) as claim:
        ranks: Any = SimpleNamespace(first=True, from_first=lambda function: function())
        saver = Saver(out / "checkpoints", ranks, 2, lambda _: None, claim.check, lambda: None)
        out.rename(tmp_path / "moved")
        with pytest.raises(GlomoError, match=r"run/\.lock is gone: .*run was moved or deleted"):
            saver.save(None, 3, {})
    assert not out.exists()
