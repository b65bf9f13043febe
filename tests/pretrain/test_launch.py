"""The launcher as a user meets it: torchrun as a child, a rank killed, the same call again."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest
from pretrain_samples import TINY, losses, rows, weights_hash, without_times

from glomo_dist.model import load_model
from glomo_dist.pretrain import pretrain, run_folder
from glomo_dist.runtime import files
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.fingerprint import command_line

pytestmark = pytest.mark.slow

CONFIG = dataclasses.replace(
    TINY, steps=60, checkpoint_every=10, keep_checkpoints=2, lr=2e-2, weight_decay=0.0
)

PROGRAM = """
import sys
from glomo_dist.pretrain import PretrainConfig, pretrain
from glomo_dist.runtime import files
from glomo_dist.runtime.config import from_dict
pretrain(from_dict(PretrainConfig, files.read_json(sys.argv[1])), sys.argv[2], sys.argv[3], 2)
"""


def rank_process(ancestor: int, rank: int) -> int:
    """Process id of the given rank among the descendants of process `ancestor`."""
    parents, wanted = {}, []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if f"\0RANK={rank}\0".encode() in (entry / "environ").read_bytes():
                wanted.append(int(entry.name))
        except OSError:  # ended meanwhile, or not ours to read
            continue
    for pid in wanted:
        above = pid
        while above in parents:
            above = parents[above]
            if above == ancestor:
                return pid
    raise AssertionError(f"no process of rank {rank} under {ancestor}: {wanted}")


@pytest.fixture(scope="module")
def uninterrupted(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(CONFIG, tiny_shards, tmp_path_factory.mktemp("launch") / "run", 2)


def start(folder: Path, shards: Path, stderr: TextIO) -> subprocess.Popen[bytes]:
    """A program that pretrains into folder/run."""
    files.write_json(folder / "config.json", to_dict(CONFIG))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", PROGRAM, str(folder / "config.json"), str(shards), str(folder / "run")]
    return subprocess.Popen(command, env=environment, stderr=stderr)


def wait_for(happened: Callable[[], bool], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(scope="module")
def killed(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of which one rank was killed after its first checkpoint, and what the run said."""
    folder = tmp_path_factory.mktemp("killed")
    out = folder / "run"
    files.write_json(folder / "config.json", to_dict(CONFIG))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with open(folder / "stderr", "w+") as stderr:
        command = [sys.executable, "-c", PROGRAM, str(folder / "config.json"), str(tiny_shards), str(out)]
        run = subprocess.Popen(command, env=environment, stderr=stderr)
        try:
            until = time.monotonic() + 300
            while not (out / "checkpoints" / "step-000010").exists():
                assert run.poll() is None and time.monotonic() < until, (folder / "stderr").read_text()[
                    -3000:
                ]
                time.sleep(0.005)
            with pytest.raises(GlomoError, match="another run is writing to"):
                pretrain(CONFIG, tiny_shards, out, 2)
            os.kill(rank_process(run.pid, 1), signal.SIGKILL)
            assert run.wait(timeout=120) != 0
        finally:
            run.kill()
    return out, (folder / "stderr").read_text()


def test_run_learns_and_ends_whole(uninterrupted: Path) -> None:
    log = losses(uninterrupted)
    assert len(log) == CONFIG.steps
    assert sum(log[-5:]) / 5 < sum(log[:5]) / 5 - 0.2
    names = {p.name for p in uninterrupted.iterdir()}
    assert names == {".lock", "config.json", "log.jsonl", "checkpoints", "tensorboard", "model"}
    assert sorted(p.name for p in (uninterrupted / "checkpoints").iterdir()) == [
        "latest",
        "step-000050",
        "step-000060",
    ]
    model, meta = load_model(uninterrupted / "model")
    assert model.config.vocab_size == 41 and meta["step"] == CONFIG.steps
    description = files.read_json(uninterrupted / "config.json")
    assert meta["tokenizer"] == description["data"]["tokenizer"]
    assert description["command"] == command_line(), "that of the user, not of the launcher"


def test_finished_run_is_left_alone(
    uninterrupted: Path, tiny_shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (uninterrupted / "log.jsonl").stat().st_mtime_ns
    assert pretrain(CONFIG, tiny_shards, uninterrupted, 2) == uninterrupted
    assert "is finished already" in capfd.readouterr().err
    assert (uninterrupted / "log.jsonl").stat().st_mtime_ns == before


def test_killed_rank_ends_the_run_and_says_how_to_go_on(killed: tuple[Path, str]) -> None:
    out, said = killed
    assert "a rank died" in said and "Run the same command again" in said
    assert not (out / "model").exists()
    assert 10 <= len(rows(out)) < CONFIG.steps


def test_the_same_call_again_ends_as_if_nothing_had_happened(
    killed: tuple[Path, str], uninterrupted: Path, tiny_shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, _ = killed
    pretrain(CONFIG, tiny_shards, out, 2)
    assert f"continuing {out} from step" in capfd.readouterr().err
    assert [without_times(r) for r in rows(out)] == [without_times(r) for r in rows(uninterrupted)]
    assert weights_hash(out) == weights_hash(uninterrupted)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_no_rank_outlives_the_program_that_started_it(tiny_shards: Path, tmp_path: Path) -> None:
    def free() -> bool:
        try:
            with run_folder.locked(tmp_path / "run"):
                return True
        except GlomoError:
            return False

    with open(tmp_path / "stderr", "w") as stderr:
        run = start(tmp_path, tiny_shards, stderr)
        wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() or run.poll() is not None)
        assert not free()
        run.kill()
        run.wait()
    wait_for(free, 60.0)
    assert len(rows(tmp_path / "run")) < CONFIG.steps
