"""Folders that are whole or not there, also where the disk is full or writing is forbidden."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.pretrain import checkpoint, loop
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.files import new_folder

ROOM = 64 << 10


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with ROOM bytes: a tmpfs where we may mount one, else writing whole files is cut short."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(disk)]
    if shutil.which("mount") and not subprocess.run(mount, capture_output=True, check=False).returncode:
        yield disk
        subprocess.run(["umount", "-l", str(disk)], check=True)
        return
    write = Path.write_bytes

    def cut(path: Path, content: bytes) -> int:
        write(path, content[:ROOM])
        if len(content) > ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)

    monkeypatch.setattr(Path, "write_bytes", cut)
    yield disk


def test_a_model_that_the_disk_does_not_hold_is_named_and_leaves_nothing(small_disk: Path) -> None:
    model = Glomo(GlomoConfig(vocab_size=1000, width=64, heads=2, layers=1))
    with pytest.raises(
        GlomoError, match=rf"^cannot write {small_disk}/model: No space left on device\. Free space"
    ):
        save_model(small_disk / "model", model)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES], ids=os.strerror
)
@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_takes_no_more_is_named(number: int, named: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = rf"^cannot write {out}: {os.strerror(number)}\. Free space or choose another folder\.$"
    with pytest.raises(GlomoError, match=expected), new_folder(out) as folder:
        (folder / "part").write_text("half of it")
        raise OSError(number, os.strerror(number), *([str(folder / "part")] if named else []))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/input/that/may/not/be/read"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), b"/another/full/disk"),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
        ValueError("a bug"),
    ],
    ids=repr,
)
def test_other_errors_are_left_as_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, new_folder(tmp_path / "out"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["shutil.copytree", "glomo_dist.runtime.files.sync_tree"])
def test_a_run_that_cannot_publish_its_model_says_how_to_go_on(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "existing", lambda _: [tmp_path / "step-1"])
    (tmp_path / "step-1" / "model").mkdir(parents=True)
    monkeypatch.setattr(where, full)
    with pytest.raises(
        GlomoError, match=rf"cannot write {tmp_path}/model: No space left .* run the same command"
    ):
        loop._publish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
