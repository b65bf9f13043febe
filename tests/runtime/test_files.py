"""Folders that are whole or not there, also where the disk is full or writing is forbidden."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.pretrain import loop
from glomo_dist.pretrain.output import checkpoint
from glomo_dist.runtime import files
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


def write_something(out: str | Path) -> None:
    with new_folder(out) as folder:
        (folder / "index.json").write_text("all of it")
        (folder / "shards").mkdir()


WRITTEN = ["index.json", "shards"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_mount_point_is_filled(small_disk: Path) -> None:
    inode = small_disk.stat().st_ino
    (small_disk / "lost+found").mkdir()  # ext4 makes it at the top of a disk
    write_something(small_disk)
    assert names(small_disk) == sorted([*WRITTEN, "lost+found"]) and small_disk.stat().st_ino == inode
    assert names(small_disk.parent) == [small_disk.name], "nothing was written beside it, on another disk"


@pytest.mark.parametrize("there", [True, False])
def test_behind_a_link(there: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "deep" / "target", tmp_path / "link"
    if there:
        target.mkdir(parents=True)
    link.symlink_to("deep/target")
    write_something(link)
    assert link.is_symlink() and names(target) == WRITTEN
    assert names(tmp_path) == ["deep", "link"] and names(tmp_path / "deep") == ["target"]
    link.unlink()
    link.symlink_to("link")
    with pytest.raises(GlomoError, match="exists and is a file"):
        write_something(link)


def test_the_folder_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_something(".")
    assert names(Path(".")) == names(tmp_path) == WRITTEN
    with pytest.raises(GlomoError, match="not empty"):
        write_something(".")


def test_what_tells_that_a_folder_is_whole_moves_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    monkeypatch.setattr(files.os, "replace", lambda source, target: moved.append(Path(source).name))
    with new_folder(tmp_path) as folder:
        for name in ("config.json", "index.json", "shards", "tokenizer.json"):
            (folder / name).touch()
    assert set(moved[:2]) == {"shards", "tokenizer.json"} and set(moved[2:]) == {"config.json", "index.json"}


def test_what_somebody_else_wrote_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(GlomoError, match="not empty"), new_folder(tmp_path) as folder:
        (folder / "index.json").write_text("ours")
        (tmp_path / "index.json").write_text("theirs")
    assert names(tmp_path) == ["index.json"] and (tmp_path / "index.json").read_text() == "theirs"


@pytest.mark.parametrize("there", [True, False])
def test_of_two_that_write_one_folder_at_once_one_is_refused(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are done and flush what they wrote before either moves it: no file of one may end beside those of the
    other, whose index it does not fit."""
    out, both, wrote = tmp_path / "out", threading.Barrier(2), files.sync_tree
    if there:
        out.mkdir()
    monkeypatch.setattr(files, "sync_tree", lambda folder: (wrote(folder), both.wait(30)))
    refused = []

    def write(mine: list[str]) -> None:
        try:
            with new_folder(out) as folder:
                for name in mine:
                    (folder / name).write_text(mine[-1])
        except GlomoError as e:
            refused.append((mine, str(e)))

    few, more = ["shard-0", "index.json"], ["shard-0", "shard-1", "index.json", "tokenizer.json"]
    writers = [threading.Thread(target=write, args=(mine,)) for mine in (few, more)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    ((loser, said),) = refused
    (winner,) = [mine for mine in (few, more) if mine != loser]
    assert str(out) in said and "not empty" in said and names(out) == sorted(winner)
    assert {(out / name).read_text() for name in winner} == {winner[-1]}
    assert names(tmp_path) == ["out"]


WRITER = """
import sys
from glomo_dist.runtime.files import new_folder
with new_folder(sys.argv[1]) as folder:
    (folder / "half").touch()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_writer_left_goes_and_what_is_in_use_stays(
    there: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o[u]t"
    if there:
        out.mkdir()
    command = [sys.executable, "-c", WRITER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        (left,) = (out if there else tmp_path).glob(".o*.tmp")
        with pytest.raises(KeyboardInterrupt), new_folder(out):
            raise KeyboardInterrupt
        assert f"{left} is left as it is" in capfd.readouterr().err and (left / "half").exists()
        writer.kill()
    write_something(out)
    assert names(out) == WRITTEN and names(tmp_path) == ["o[u]t"]


@pytest.mark.parametrize("mark", [None, "", "another-host"])
def test_what_may_be_in_use_elsewhere_is_left_and_named(
    mark: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / ".out.0123abcd.tmp"
    left.mkdir()
    if mark is not None:
        (left / files._MARK).write_text(mark)
    (tmp_path / ".out.other.0123abcd.tmp").mkdir()  # of another folder
    write_something(tmp_path / "out")
    assert names(tmp_path) == [".out.0123abcd.tmp", ".out.other.0123abcd.tmp", "out"]
    said = capfd.readouterr().err
    assert f"{left} is left as it is" in said and "other" not in said.replace("another", "")


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
