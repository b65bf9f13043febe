"""One rank's writing of checkpoints: in which order, what it waits for, and what is left when it fails."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glomo_dist.pretrain.output import checkpoint, saving
from glomo_dist.pretrain.output.saving import Saver
from glomo_dist.runtime.errors import GlomoError


def agree_on(error: GlomoError | None) -> None:
    if error is not None:
        raise error


def write_model(folder: Path, pieces: list[Path], step: int) -> None:
    folder.mkdir()
    (folder / "pieces").write_text(f"{step}: {' '.join(piece.name for piece in pieces)}")


@pytest.fixture
def saver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Saver]:
    """Makes that of rank 0; its share of the state is what stands in the place of the engine."""
    monkeypatch.setattr(saving, "snapshot", lambda engine: {"w/fp32/0": torch.full((3,), engine)})

    def make(keep: int = 2, **stand_ins: Any) -> Saver:
        named: dict[str, Any] = {"export": write_model, "allowed": lambda: None, "beat": lambda: None}
        of_ranks = {key: stand_ins.pop(key) for key in list(stand_ins) if key not in named}
        ranks: Any = SimpleNamespace(
            **{"rank": 0, "world": 1, "first": True, "sum": list, "agree_on": agree_on, "barrier": lambda: None,
               "from_first": lambda function: function(), **of_ranks}
        )  # fmt: skip
        return Saver(tmp_path, ranks, keep, **{**named, **stand_ins})

    return make


def test_a_checkpoint_gets_its_name_when_all_of_it_is_on_disk(
    saver: Callable[..., Saver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another run has not taken the folder meanwhile; `latest` is written when the name, too, is on disk."""
    flushed: set[int] = set()
    done: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, os.replace

    def flush(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def give_name(self: Path, target: Path) -> Path:
        assert {p.stat().st_ino for p in (self, *self.rglob("*"))} <= flushed
        assert done.pop() == "asked"
        flushed.clear()
        done.append("named")
        return rename(self, target)

    def written(temporary: Path, target: Path) -> None:
        if target.name == "latest":
            assert done == ["asked", "named"] and tmp_path.stat().st_ino in flushed
        replace(temporary, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", give_name)
    monkeypatch.setattr(os, "replace", written)
    made = saver(allowed=lambda: done.append("asked"))
    made.save(7, 3, {"step": 3})
    made.wait()
    assert (tmp_path / "latest").read_text() == "step-000003\n"
    checkpoint.verify(tmp_path / "step-000003")


def test_rank_0_waits_for_the_files_of_the_others(saver: Callable[..., Saver], tmp_path: Path) -> None:
    """That is no progress, of which the watchdog would be told."""
    asked: list[float] = []
    beats: list[int] = []

    def summed(values: list[float]) -> list[float]:
        asked.append(values[2])
        if len(asked) == 5:  # the other rank has written its share
            assert not checkpoint.existing(tmp_path)
            (folder,) = (path / "state" for path in tmp_path.glob(".step-000004.*.tmp"))
            (folder / "rank-00001.safetensors").write_bytes(b"its share")
            note = {"bytes": 9, "sha256": hashlib.sha256(b"its share").hexdigest()}
            (folder / "rank-00001.json").write_text(json.dumps(note))
        return values

    made = saver(world=2, sum=summed, beat=lambda: beats.append(len(asked)))
    made.save(7, 4, {"step": 4, "best": 1.5})
    made.wait()
    assert len(beats) == len(list(itertools.groupby(asked))) < len(asked)
    manifest = checkpoint.verify(tmp_path / "step-000004")
    assert manifest["ranks"] == 2 and manifest["state"] == {"step": 4, "best": 1.5}
    ranks = ["rank-00000.safetensors", "rank-00001.safetensors"]
    assert sorted(manifest["files"]) == ["model/pieces", *(f"state/{name}" for name in ranks)]
    assert (tmp_path / "step-000004" / "model" / "pieces").read_text() == f"4: {' '.join(ranks)}"
    own = load_file(tmp_path / "step-000004" / "state" / ranks[0])
    assert own["w/fp32/0"].tolist() == [7, 7, 7]


def test_one_is_written_at_a_time_and_the_newest_stay(saver: Callable[..., Saver], tmp_path: Path) -> None:
    there: list[list[str]] = []
    made = saver(keep=1, allowed=lambda: there.append([p.name for p in checkpoint.existing(tmp_path)]))
    for step in (1, 2, 3):
        made.save(step, step, {"step": step})
    made.wait()
    begun = there[::2]  # asked where a save begins and before it ends
    assert begun == [[], ["step-000001"], ["step-000002"]]
    assert [p.name for p in checkpoint.existing(tmp_path)] == ["step-000003"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("a bug"), "writing checkpoint step-000002: RuntimeError: a bug"),
        (
            OSError(28, "No space left"),
            r"cannot write .*/step-000002: No space left.* checkpoints are untouched",
        ),
        (GlomoError("taken"), "^taken$"),
    ],
)
def test_what_goes_wrong_in_the_thread_is_raised_and_nothing_half_written_stays(
    error: Exception, message: str, saver: Callable[..., Saver], tmp_path: Path
) -> None:
    def fail(folder: Path, pieces: list[Path], step: int) -> None:
        if step == 2:
            raise error
        write_model(folder, pieces, step)

    made = saver(export=fail)
    made.save(1, 1, {"step": 1})
    made.save(2, 2, {"step": 2})
    with pytest.raises(GlomoError, match=message):
        made.wait()
    assert not made.busy and sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001"]


def test_a_rank_that_cannot_write_ends_the_wait_of_rank_0(
    saver: Callable[..., Saver], tmp_path: Path
) -> None:
    def other_failed(error: GlomoError | None) -> None:
        assert error is None, "of this rank"
        raise GlomoError("rank 1 has no space")

    made = saver(world=2, sum=lambda values: [values[0], 1, values[2]], agree_on=other_failed)
    made.save(1, 1, {"step": 1})
    with pytest.raises(GlomoError, match="rank 1 has no space"):
        made.wait()
    assert not made.busy and not list(tmp_path.iterdir())
