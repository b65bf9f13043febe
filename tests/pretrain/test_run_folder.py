from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretrain_samples import TINY, begun

from glomo_dist.data import Reading, exists
from glomo_dist.pretrain import PretrainConfig, launch, pretrain, worker
from glomo_dist.pretrain.__main__ import main as rank_main
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.ranks import notice
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import CheckpointError, ConfigError, GlomoError


def run_alone(
    config: PretrainConfig, shards: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """What a rank under one's own torchrun does, but for the training. Returns what is in `out` when that begins."""
    found: list[list[str]] = []
    monkeypatch.setattr(worker, "train", lambda *_: found.append(sorted(p.name for p in out.iterdir())))
    ranks = SimpleNamespace(
        rank=0, world=1, device=torch.device("cpu"), gather=lambda value: [value],
        from_first=lambda function: function(), barrier=lambda: None,
    )  # fmt: skip
    worker.run_in(resolve(config, shards, out), ranks)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.5}, r"config\.lr: 0\.03 there, 0\.5 now"),
        ({"zero_stage": 1}, "config.zero_stage: 2 there, 1 now"),
    ],
)
def test_folder_of_another_run(tiny_shards: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    run = begun(TINY, tiny_shards, tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"{named}.*same settings"):
        pretrain(dataclasses.replace(TINY, **change), tiny_shards, run, 2)


def test_moved_shards_and_harmless_settings_are_the_same_run(tiny_shards: Path, tmp_path: Path) -> None:
    run = begun(TINY, tiny_shards, tmp_path / "run")
    moved = shutil.copytree(tiny_shards, tmp_path / "moved")
    config = dataclasses.replace(
        TINY, keep_checkpoints=7, log_every=3, activation_checkpointing=True, checkpoint_every=9, max_bad_steps=2,
        hang_timeout=9.0, trackers=(), reading=Reading(readers=1, cache=str(tmp_path), max_bad_shards=3),
    )  # fmt: skip
    assert run_folder.check(run, run_folder.describe(resolve(config, moved, run), 2))


def test_a_run_is_that_of_its_deepspeed_settings_and_validation_shards_wherever_they_are(
    split_shards: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text('{"prescale_gradients": true}')
    config = dataclasses.replace(TINY, valid_every=2, deepspeed=str(first))
    out = begun(config, split_shards, tmp_path / "run")
    valid = shutil.copytree(split_shards / "valid", tmp_path / "moved")
    config = dataclasses.replace(config, deepspeed=str(second))

    def check(valid: Path, data: str = "train") -> bool:
        job = resolve(config, split_shards / data, out, valid)
        return run_folder.check(out, run_folder.describe(job, 2))

    shutil.copy(first, second)
    assert check(valid)
    with pytest.raises(CheckpointError, match=r"differs: data\.fingerprint: '\w+' there, '\w+' now\. To"):
        check(valid, "valid")
    with pytest.raises(CheckpointError, match=r"differs: valid\.fingerprint: '\w+' there, '\w+' now\. To"):
        check(split_shards / "train")
    second.write_text('{"prescale_gradients": false}')
    with pytest.raises(CheckpointError, match=r"deepspeed\.prescale_gradients: True there, False now"):
        check(valid)
    second.write_text('{"prescale_gradients": true, "gradient_predivide_factor": 2.0}')
    with pytest.raises(CheckpointError, match=r"deepspeed\.gradient_predivide_factor: None there, 2\.0 now"):
        check(valid)
    second.write_text("{}")
    with pytest.raises(CheckpointError, match=r"deepspeed\.prescale_gradients: True there, None now"):
        check(valid)


def test_a_batch_that_does_not_split_is_refused_before_anything_is_written(
    tiny_shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not a multiple of the number of ranks 3"):
        pretrain(TINY, tiny_shards, tmp_path / "run", 3)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_another_micro_batch(tiny_shards: Path, tmp_path: Path) -> None:
    """On two ranks passes of 2 rows; on 8 that divides no share any more."""
    run = begun(dataclasses.replace(TINY, micro_batch=2), tiny_shards, tmp_path / "run")
    job = resolve(dataclasses.replace(TINY, micro_batch=1), tiny_shards, run)
    assert run_folder.check(run, run_folder.describe(job, 8))


def test_a_finished_run_is_not_trained_again(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where its checkpoints were deleted, and under one's own torchrun."""
    run = begun(TINY, tiny_shards, tmp_path / "run", 1)
    (run / "model").mkdir()  # as the mount point of another disk
    assert not run_folder.finished(run)
    json_files.write_json(run / "model" / "config.json", {})
    assert not run_alone(TINY, tiny_shards, run, monkeypatch)
    assert "is finished already" in capfd.readouterr().err


def test_what_a_kill_left_is_mended(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the very start, before there is a config.json; and while the model was published."""
    out = tmp_path / "run"
    (out / ".launch-0123").mkdir(parents=True)
    (out / ".lock").write_text("")
    (out / ".config.json.0123abcd.tmp").write_text("{")
    assert run_alone(TINY, tiny_shards, out, monkeypatch) == [[".launch-0123", ".lock", "config.json"]]
    (out / ".model.0123abcd.tmp").mkdir()
    (out / ".model.0123abcd.tmp" / "config.json").write_text("{")
    for name in ("config.json", "log.jsonl", "quarantine.json", "wandb.json", "mlflow.json"):
        (out / f".{name}.0123abcd.tmp").write_text("{")
    (out / ".graphs.0123abcd.tmp").mkdir()  # of an export in progress, into the same folder
    left = [".graphs.0123abcd.tmp", ".launch-0123", ".lock", "config.json"]
    assert run_alone(TINY, tiny_shards, out, monkeypatch) == [left]


def test_folder_of_something_else(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(GlomoError, match="out is not empty"):
        pretrain(TINY, tiny_shards, out, 2)
    (out / "config.json").write_text('{"some": "other program"}')
    with pytest.raises(GlomoError, match="not the description of a pretraining run"):
        pretrain(TINY, tiny_shards, out, 2)
    assert (out / "thesis.tex").read_text() == "precious" and len(list(out.iterdir())) == 2


def test_checkpoints_without_a_whole_config_are_not_to_be_deleted(tiny_shards: Path, tmp_path: Path) -> None:
    run = begun(TINY, tiny_shards, tmp_path / "run")
    (run / "checkpoints" / "damaged-step-000003").mkdir(parents=True)
    (run / "config.json").write_text("")
    with pytest.raises(
        GlomoError, match=r"config\.json, line 1: not valid JSON.*The checkpoints are untouched"
    ):
        pretrain(TINY, tiny_shards, run, 2)
    (run / "config.json").unlink()
    with pytest.raises(
        GlomoError, match=r"run holds checkpoints, but not the config\.json of their run\. Put"
    ):
        pretrain(TINY, tiny_shards, run, 2)
    shutil.rmtree(run / "checkpoints" / "damaged-step-000003")
    for folder in (run, run / "checkpoints"):
        (folder / "lost+found").mkdir()  # ext4 makes it at the top of a disk
    assert not run_folder.check(run, {}), "an empty folder holds none"


def test_folders_that_may_not_be_looked_into(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user meets them; the tests may run as root, who may look everywhere."""
    look = Path.stat

    def refused(self: Path, **options: Any) -> os.stat_result:
        if "closed" in self.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return look(self, **options)

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(
        GlomoError, match=r"cannot write .*closed/run: Permission denied\. Choose another output"
    ):
        pretrain(TINY, tiny_shards, tmp_path / "closed" / "run", 2)
    with pytest.raises(GlomoError, match="run: File name too long"):
        pretrain(TINY, tiny_shards, tmp_path / ("x" * 300) / "run", 2)
    assert exists(tmp_path / "closed" / "index.json") and not exists(tmp_path / "nothing")


def test_run_of_another_version(tiny_shards: Path, tmp_path: Path) -> None:
    run = begun(TINY, tiny_shards, tmp_path / "run")
    value = json.loads((run / "config.json").read_text())
    json_files.write_json(run / "config.json", {**value, "version": 99})
    with pytest.raises(CheckpointError, match="format version 99"):
        pretrain(TINY, tiny_shards, run, 2)


def test_an_error_reaches_the_launcher_from_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / ".launch-0").mkdir()
    (tmp_path / "no folder").write_text("")
    for folder in (tmp_path / ".launch-0", tmp_path / "no folder", tmp_path / "moved" / ".launch-1"):
        notice.leave(folder / "error.json", ConfigError("lr must be positive"))
        assert notice.take(folder / "error.json") == {"type": "ConfigError", "message": "lr must be positive"}
        assert notice.take(folder / "error.json") is None
    assert not list((tmp_path / "tmp").iterdir())
    assert not (tmp_path / "moved").exists(), "a run folder that was moved away is not made anew"


def test_an_error_for_which_no_disk_has_room_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback, of the rank and of the program that started it."""

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    def refused(*_: object) -> None:
        error = ConfigError("lr must be positive")
        error.everywhere = True
        raise error

    left = tmp_path / "gone" / "error.json"
    with monkeypatch.context() as here:
        here.setattr(tempfile, "gettempdir", nowhere)
        assert notice.take(left) is None
        here.setattr(json_files, "read_json", refused)
        here.setattr(sys, "argv", ["rank", "--job", "job.json", "--errors", str(left)])
        with pytest.raises(SystemExit) as ended:
            rank_main()
    assert ended.value.code == 2 and capfd.readouterr().err == "glomo: rank 0: lr must be positive\n"


def test_files_of_a_launch_go_with_it_but_not_those_of_another(tmp_path: Path) -> None:
    dead = tmp_path / ".launch-0123"
    dead.mkdir()
    with run_folder.launch_folder(tmp_path) as first, run_folder.launch_folder(tmp_path) as second:
        run_folder.remove_launches(tmp_path)
        assert first.is_dir() and second.is_dir() and first != second and not dead.exists()
        assert first.stat().st_mode & 0o777 == 0o700, "the address of the data may hold what opens it"
    assert not list(tmp_path.iterdir())


def test_what_a_killed_launch_left_goes_also_when_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks finish without their launcher, and the same command starts nothing more."""
    job: Any = SimpleNamespace(config=SimpleNamespace(trackers=()), out=tmp_path)
    monkeypatch.setattr(run_folder, "describe", lambda *_: {})
    monkeypatch.setattr(run_folder, "finished_already", lambda *_: True)
    (tmp_path / ".launch-0123").mkdir()
    assert launch._launch(job, {}, 1, 0) == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_setting_without_effect_is_warned_of_where_a_run_begins(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, coupled=True, layers=1))
    assert len(run_alone(config, tiny_shards, tmp_path / "run", monkeypatch)) == 1
    assert "WARNING: model.coupled True is for layers 2 or more" in capfd.readouterr().err
