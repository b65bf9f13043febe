"""Locks between processes, and what each part of the program does on a file system that has none."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from glomo_dist.data.reading.cache import ShardCache
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.output.claim import locked
from glomo_dist.runtime import files
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.locks import Lock, take
from glomo_dist.transfer.features import states


def failing(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(request.param))


def test_held_busy_and_shared(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with open(path, "w") as first, open(path) as second:
        assert take(first) is Lock.HELD
        assert take(second) is take(second, shared=True) is Lock.BUSY
        first.close()
        assert take(second, shared=True) is Lock.HELD
        with open(path) as third:
            assert take(third, shared=True, wait=True) is Lock.HELD
            assert take(third) is Lock.BUSY


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with open(tmp_path / "lock", "w") as file, pytest.raises(OSError, match="Input/output error"):
        take(file)


def export(folder: Path) -> None:
    with files.only_one(folder, "exporting"):
        pass


def run(folder: Path) -> None:
    with locked(folder) as claim:
        claim.check()  # the marks guard the checkpoints all the same


def encoder_states(folder: Path) -> None:
    encoder = SimpleNamespace(states=lambda texts: np.zeros((1, 2), np.float16))
    for text in ("a", "b"):
        found = states._chunk(folder, [[text]], lambda: encoder)  # type: ignore[arg-type,return-value]
        assert found.shape == (1, 2)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(
    ("work", "care"),
    [
        (export, "take care that no other process is exporting into it"),
        (run, "take care that no second run uses it"),
        (encoder_states, "may each compute them"),
    ],
)
def test_what_one_process_does_alone_goes_on_with_one_warning(
    work: Callable[[Path], None], care: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work(tmp_path)
    work(tmp_path)
    said = capfd.readouterr().err
    assert said.count("WARNING") == 1 and f"{tmp_path} has no locks" in said and care in said


@pytest.mark.usefixtures("without_locks")
def test_folders_under_temporary_names_are_made_and_left(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123abcd.tmp"
    left.mkdir()
    (left / files._MARK).touch()
    with files.new_folder(tmp_path / "out") as folder:
        assert not (folder / files._MARK).read_bytes(), "no name of a host, as nothing is locked"
    dead = tmp_path / "out" / f"{run_folder.LAUNCH}0123"
    dead.mkdir()
    with run_folder.launch_folder(tmp_path / "out") as mine:
        assert mine.is_dir()
    assert left.is_dir() and dead.is_dir(), "another process may be using them"


@pytest.mark.usefixtures("without_locks")
def test_what_many_processes_share_is_refused(tmp_path: Path) -> None:
    shards = ShardCache(tmp_path, 1000, 1.0)
    with pytest.raises(GlomoError, match=r"has no locks.*on a local disk \(reading\.cache\)"):
        shards.open(
            "key", np.dtype(np.uint8), 1, lambda file: hashlib.sha256(b"").digest(), lambda: False, "shard"
        )
