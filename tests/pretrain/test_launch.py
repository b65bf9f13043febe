"""The launcher as a user meets it: torchrun as a child, a rank killed, the same call again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pretrain_samples import (
    PLAIN,
    TINY,
    losses,
    rank_process,
    rows,
    start_program,
    steps_done,
    temporary_files,
    wait_for,
    weights_hash,
    without_times,
)

from glomo_dist.model import load_model
from glomo_dist.pretrain import launch, pretrain
from glomo_dist.pretrain.output import checkpoint
from glomo_dist.pretrain.output.claim import locked
from glomo_dist.pretrain.ranks import notice
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import GlomoError, Interrupted, RankDied, RankTooLarge
from glomo_dist.runtime.fingerprint import command_line

pytestmark = pytest.mark.slow

CONFIG = dataclasses.replace(
    TINY, steps=60, checkpoint_every=10, keep_checkpoints=2, lr=2e-2, weight_decay=0.0
)


@pytest.fixture(scope="module")
def uninterrupted(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(CONFIG, tiny_shards, tmp_path_factory.mktemp("launch") / "run", 2)


@pytest.fixture(scope="module")
def killed(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of which one rank was killed after its first checkpoint, and what the run said."""
    folder = tmp_path_factory.mktemp("killed")
    out = folder / "run"
    run = start_program(folder, CONFIG, tiny_shards)
    try:
        wait_for(lambda: (out / "checkpoints" / "step-000010").exists() or run.poll() is not None)
        assert run.poll() is None, (folder / "stderr").read_text()[-3000:]
        with pytest.raises(GlomoError, match=r"another run is writing to .* \(process \d+ on "):
            pretrain(CONFIG, tiny_shards, out, 2)
        rank = rank_process(run.pid, 1)
        assert b"\0GOMP_SPINCOUNT=3000\0" in Path(f"/proc/{rank}/environ").read_bytes(), "ranks wait briefly"
        os.kill(rank, signal.SIGKILL)
        assert run.wait(timeout=25) == RankDied.exit_code  # torchrun itself would give the others 30 s
    finally:
        run.kill()
    assert temporary_files(folder) == [] and not list(out.glob(".launch*"))
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
    description = json_files.read_json(uninterrupted / "config.json")
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


def test_out_of_memory_is_not_told_to_run_again(tiny_shards: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(PLAIN, global_batch=10**15)  # more than any address space
    with pytest.raises(
        RankTooLarge, match=r"rank [01] of .*run ran out of memory with 500,000,000,000,000 seq"
    ) as e:
        pretrain(config, tiny_shards, tmp_path / "run", 2)
    said = str(e.value)
    assert "Unable to allocate" in said and "a micro_batch below 500000000000000 or activation_ch" in said
    assert "`glomo plan`" in said and "same command" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_no_rank_outlives_the_program_that_started_it(tiny_shards: Path, tmp_path: Path) -> None:
    def free() -> bool:
        try:
            with locked(tmp_path / "run"):
                return True
        except GlomoError:
            return False

    run = start_program(tmp_path, CONFIG, tiny_shards)
    wait_for(lambda: steps_done(tmp_path / "run") > 2 or run.poll() is not None)
    assert not free()
    run.kill()
    run.wait()
    wait_for(free, 60.0)
    done = len(rows(tmp_path / "run"))
    assert done < CONFIG.steps
    newest = checkpoint.existing(tmp_path / "run" / "checkpoints")[0]
    assert checkpoint.verify(newest)["step"] == done, "the ranks were asked to save"
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_no_rank_waits_for_a_launcher_that_died_before_the_ranks_were_a_group(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run, ranks = start_program(tmp_path, CONFIG, tiny_shards, start_new_session=True), []

    def started() -> bool:
        with contextlib.suppress(AssertionError):  # not yet
            ranks[:] = (rank_process(run.pid, number) for number in (0, 1))
        return len(ranks) == 2 or run.poll() is not None

    wait_for(started)
    os.killpg(run.pid, signal.SIGKILL)  # the program and torchrun; each rank has a session of its own
    run.wait()
    try:
        wait_for(lambda: not any(map(psutil.pid_exists, ranks)), 60.0)
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
    assert (tmp_path / "stderr").read_text().count("the launcher above it is gone, so it ends") == 2


def readers(ancestor: int) -> list[int]:
    """Process ids of the reader processes of all ranks below `ancestor`."""
    found = []
    for process in psutil.Process(ancestor).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            found += [process.pid] * ("glomo_dist.data.reading.reader" in process.cmdline())
    return found


def test_restarted_after_the_death_of_a_reader_and_stopped_by_a_signal(
    tiny_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = start_program(tmp_path, CONFIG, tiny_shards, restarts=1)
    try:
        wait_for(lambda: (out / "checkpoints" / "step-000010").exists() or run.poll() is not None)
        os.kill(readers(run.pid)[0], signal.SIGKILL)  # ends its rank, and all the others know why
        wait_for(lambda: "continuing" in (tmp_path / "stderr").read_text() or run.poll() is not None)
        run.send_signal(signal.SIGUSR1)
        assert run.wait(timeout=30) == Interrupted.exit_code, (tmp_path / "stderr").read_text()[-3000:]
    finally:
        run.kill()
    said = (tmp_path / "stderr").read_text()
    assert "a reader process" in said and "was killed by SIGKILL" in said and "asked" in said
    assert checkpoint.verify(checkpoint.existing(out / "checkpoints")[0])["step"] == len(rows(out))


def signalled(shards: Path, folder: Path, number: signal.Signals) -> tuple[int, int, str]:
    """A run of which all processes get the signal, as from a terminal: the launcher, torchrun, the ranks and their
    readers. Its exit code, the steps it has done, of which none is lost, and what it said."""
    out = folder / "run"
    run = start_program(folder, CONFIG, shards, start_new_session=True)
    try:
        wait_for(lambda: steps_done(out) > 2 or run.poll() is not None)
        os.killpg(run.pid, number)
        code = run.wait(timeout=30)
    finally:
        run.kill()
    done, said = len(rows(out)), (folder / "stderr").read_text()
    assert done < CONFIG.steps, said[-3000:]
    assert checkpoint.verify(checkpoint.existing(out / "checkpoints")[0])["step"] == done
    return code, done, said


def test_ctrl_c_in_a_terminal_saves(tiny_shards: Path, tmp_path: Path) -> None:
    code, done, said = signalled(tiny_shards, tmp_path, signal.SIGINT)
    assert code in (-signal.SIGINT, 130), said[-3000:]
    out = tmp_path / "run"
    assert f"Ctrl-C asked {out} to stop: saved at step {done}. Run the same command again" in said
    assert said.count("Traceback") == 1, "that of this program, whose KeyboardInterrupt nobody catches"


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[int] = []

    def wait(seconds: float = 0.0) -> int:
        if sent:
            return 1
        signal.raise_signal(signal.SIGINT)
        raise subprocess.TimeoutExpired("torchrun", seconds)

    process = SimpleNamespace(wait=wait, send_signal=sent.append)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, **__: process)
    torchrun = launch.Torchrun(2, 0, tmp_path, [])
    with pytest.raises(KeyboardInterrupt):
        torchrun.wait()
    assert sent == [signal.SIGTERM] and torchrun.asked == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_ranks_that_are_busy(tiny_shards: Path, tmp_path: Path) -> None:
    """In a step that takes minutes no rank can save; torchrun alone would wait for 30 s."""
    out = tmp_path / "run"
    run = start_program(tmp_path, CONFIG, tiny_shards, start_new_session=True)
    try:
        wait_for(lambda: steps_done(out) > 2 or run.poll() is not None)
        ranks = [rank_process(run.pid, rank) for rank in (0, 1)]
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        run.send_signal(signal.SIGINT)
        time.sleep(1.0)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) in (-signal.SIGINT, 130)
        assert not any(psutil.pid_exists(rank) for rank in ranks)
    finally:
        run.kill()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_all_processes_saves(number: signal.Signals, tiny_shards: Path, tmp_path: Path) -> None:
    """As of a terminal that is closed, or of a service manager."""
    code, _, said = signalled(tiny_shards, tmp_path, number)
    assert code == Interrupted.exit_code, said[-3000:]
    assert f"{number.name} asked" in said and "Traceback" not in said


def test_ranks_that_were_started_again_are_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop while torchrun starts the ranks again: those that are dead have left their files."""
    numbers = iter(([101, 102], [101, 102], [201, 102], [201, 202]))
    told: list[int] = []

    def wait(seconds: float) -> int:
        if (pids := next(numbers, None)) is None:
            return 75
        for rank, pid in enumerate(pids):
            (tmp_path / f"rank-{rank}{notice.PID}").write_text(str(pid))
        raise subprocess.TimeoutExpired("torchrun", seconds)

    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=wait))
    monkeypatch.setattr(launch.os, "kill", lambda pid, number: told.append(pid))
    torchrun = launch.Torchrun(2, 1, tmp_path, [])
    torchrun._ask(signal.SIGTERM, None)
    assert torchrun.wait() == 75 and told.count(102) == 1 and set(told) == {101, 102, 201, 202}


@pytest.mark.parametrize(("set_by_user", "threads"), [(None, "4"), ("3", "3")])
def test_ranks_share_the_cores_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_by_user: str | None, threads: str
) -> None:
    told: dict[str, str] = {}
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, env, **__: told.update(env))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    with monkeypatch.context() as quiet:
        quiet.setattr(launch.signal, "signal", lambda *_: None)
        launch.Torchrun(2, 0, tmp_path, [])
    assert (told["OMP_NUM_THREADS"], told["PYTHONSAFEPATH"]) == (threads, "1")
