"""Checkpoints that are damaged, of another version, or cannot be read."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from privileges import closed, public_folder

from glomo_dist.pretrain.output import checkpoint
from glomo_dist.runtime.errors import CheckpointError, GlomoError

WRONG_DIGITS = {
    "step": ('"step": 12,\n  "best"', '"step": 13,\n  "best"'),
    "loss": ('"best": 2.5', '"best": 2.4'),
    "key": ('"fingerprint"', '"fingerprinu"'),
}


def write_checkpoint(folder: Path, step: int, ranks: int = 1) -> Path:
    path = folder / f"step-{step:06d}"
    (path / "state").mkdir(parents=True)
    (path / "state" / "rank-00000.safetensors").write_bytes(bytes(range(step)))
    checkpoint.write_manifest(path, step, {"step": step, "best": 2.5}, ranks, {})
    return path


@pytest.mark.parametrize(
    "damage",
    ["changed", "cut", "missing", "manifest", "format", "no manifest", "step", "loss", "key"],
)
def test_every_damage_is_seen(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    old, new = write_checkpoint(tmp_path, 5), write_checkpoint(tmp_path, 12)
    if damage == "cut":
        (tmp_path / "damaged-step-000012" / "state").mkdir(parents=True)  # one that was damaged before
    else:
        (tmp_path / "damaged-step-000012").touch()  # a file in the way
    assert checkpoint.find_newest(tmp_path) == (new, checkpoint.verify(new))
    file, manifest = new / "state" / "rank-00000.safetensors", new / "manifest.json"
    if damage == "changed":
        file.write_bytes(bytes(range(11)) + b"!")
    elif damage == "cut":
        file.write_bytes(bytes(range(11)))
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "format":
        manifest.write_text("{}")
    elif damage in WRONG_DIGITS:  # of the loop state
        before, after = WRONG_DIGITS[damage]
        assert manifest.read_text().count(before) == 1
        manifest.write_text(manifest.read_text().replace(before, after))
    else:
        manifest.unlink()
    found = checkpoint.find_newest(tmp_path)
    assert found is not None and found[0] == old and found[1]["state"] == {"step": 5, "best": 2.5}
    assert "WARNING: checkpoint" in capfd.readouterr().err and (tmp_path / "damaged-step-000012").is_dir()
    shutil.rmtree(old)
    for _ in range(2):  # also when asked again: never a silent new start
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            checkpoint.find_newest(tmp_path)


@pytest.mark.parametrize(
    ("name", "ranks"), [("state/../../other", 1), ("/etc/hostname", 1), ("state/rank-00001.safetensors", 3)]
)
def test_a_manifest_that_asks_for_other_files_than_a_checkpoint_has_is_refused(
    name: str, ranks: int, tmp_path: Path
) -> None:
    """Also where it vouches for itself: what lies outside is not looked at, and no rank's share is missing."""
    path = write_checkpoint(tmp_path, 5)
    value = json.loads((path / "manifest.json").read_text())
    value["files"][name], value["ranks"] = {"bytes": 1, "sha256": "0"}, ranks
    (path / "manifest.json").write_text(json.dumps(checkpoint.sealed(value)))
    with pytest.raises(CheckpointError, match=r"manifest\.json is not what was written"):
        checkpoint.verify(path)


@pytest.mark.parametrize("what", ["folder", "state"])
def test_a_checkpoint_of_two_steps_is_refused(what: str, tmp_path: Path) -> None:
    """One that was renamed, or whose loop would go on from another step."""
    path = write_checkpoint(tmp_path, 5)
    if what == "folder":
        path = path.rename(tmp_path / "step-000007")
    else:
        value = json.loads((path / "manifest.json").read_text())
        value["state"]["step"] = 7
        (path / "manifest.json").write_text(json.dumps(checkpoint.sealed(value)))
    with pytest.raises(
        CheckpointError, match=rf"{path.name} is damaged: manifest\.json is not what was written"
    ):
        checkpoint.verify(path)


def test_checkpoints_are_folders_and_the_newest_is_that_of_the_largest_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("step-999999", "step-1000000", "step-000001", "step-000002.bak", "step-12"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-2000000").touch()
    found = checkpoint.existing(tmp_path)
    assert [path.name for path in found] == ["step-1000000", "step-999999", "step-000001"]

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        checkpoint.remove(found[0])
    assert checkpoint.existing(tmp_path) == found[1:]
    for name in ("step-999999", "step-000001"):
        checkpoint.remove(tmp_path / name)
    assert checkpoint.find_newest(tmp_path) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002.bak", "step-12", "step-2000000"]


def test_a_checkpoint_that_cannot_be_read_or_set_aside_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may answer again in a minute: nothing is renamed, nothing begins anew."""
    old, new = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 3)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.files, "sha256_file", fail)
        with pytest.raises(
            GlomoError, match=r"rank-00000\.safetensors cannot be read: Input/output.*step-000003"
        ):
            checkpoint.find_newest(tmp_path)
    (new / "state" / "rank-00000.safetensors").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(GlomoError, match=r"step-000003: Input/output error.*cannot be set aside"):
            checkpoint.find_newest(tmp_path)
    assert old.is_dir() and new.is_dir()


@pytest.mark.parametrize(
    ("name", "cannot"),
    [
        ("step-000003/manifest.json", r"manifest\.json cannot be read: Permission denied.*step-000003"),
        ("step-000003/state/rank-00000.safetensors", r"00000\.safetensors cannot be read: Permission denied"),
        ("step-000003/state", r"00000\.safetensors cannot be read: Permission denied.*step-000003"),
        ("step-000003", r"manifest\.json cannot be read: Permission denied.*step-000003"),
        ("", r"checkpoints cannot be read: Permission denied\. Run the same command again"),
    ],
)
def test_nothing_that_may_not_be_read_is_taken_for_damaged(name: str, cannot: str) -> None:
    with public_folder() as folder:
        checkpoints = folder / "checkpoints"
        write_checkpoint(checkpoints, 2)
        new = write_checkpoint(checkpoints, 3)
        checkpoints.chmod(0o777)  # so that it could be renamed
        with closed(checkpoints / name), pytest.raises(GlomoError, match=cannot) as error:
            checkpoint.find_newest(checkpoints)
        assert not isinstance(error.value, CheckpointError)
        assert checkpoint.find_newest(checkpoints) == (new, checkpoint.verify(new))


@pytest.mark.parametrize("name", ["manifest.json", "state/rank-00000.safetensors", "state"])
def test_what_is_no_file_or_no_folder_is_damage(name: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3) / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(CheckpointError, match="step-000003 is damaged: "):
        checkpoint.verify(tmp_path / "step-000003")


def test_a_manifest_without_a_fingerprint_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old, path = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 3)
    value = json.loads((path / "manifest.json").read_text())
    del value["fingerprint"]
    (path / "manifest.json").write_text(json.dumps(value))
    found = checkpoint.find_newest(tmp_path)
    assert found is not None and found[0] == old
    assert "manifest.json has no fingerprint that vouches for it" in capfd.readouterr().err


def test_checkpoint_of_another_version(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3)
    value = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**value, "version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        checkpoint.find_newest(tmp_path)
    assert path.is_dir(), "a newer format is not damage"
