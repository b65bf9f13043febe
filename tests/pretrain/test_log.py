"""What a run writes down of its steps: log.jsonl, and the state of the loop in a checkpoint."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pretrain_samples import PLAIN, job, rows, run_ranks

from glomo_dist.pretrain import loop
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.output.log import JsonLog
from glomo_dist.pretrain.settings.schedule import Plateau
from glomo_dist.pretrain.steps.loop_state import LoopState
from glomo_dist.runtime.errors import GlomoError

OFTEN = dataclasses.replace(PLAIN, steps=7, log_every=4, valid_every=3, valid_batches=1, checkpoint_every=2)
DIVERGING = dataclasses.replace(
    PLAIN, steps=4, optimizer="sgd", weight_decay=0.0, lr=1e30, clip=None, schedule="constant"
)
PLATEAU = dataclasses.replace(
    PLAIN, steps=9, log_every=9, schedule="plateau", valid_every=1, valid_batches=1, plateau_patience=1,
    plateau_divisor=1e9, optimizer="sgd", lr=1e-12, weight_decay=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of three runs of one rank, and what was said."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = [
        {**job(config, tiny_shards, folder / name), "valid": str(tiny_shards) if config.valid_every else None}
        for name, config in (("often", OFTEN), ("diverging", DIVERGING), ("plateau", PLATEAU))
    ]
    return folder, run_ranks(folder, jobs, 1)


def test_every_validation_is_a_row_and_seconds_are_those_since_the_row_before(runs: tuple[Path, str]) -> None:
    log = rows(runs[0] / "often")
    assert [row["step"] for row in log] == [3, 4, 6, 7]
    assert ["valid_loss" in row for row in log] == [True, False, True, True]
    # The checkpoint of step 2 was begun before step 3, that of 4 before 5, which has no row of its own, that of 6
    # before 7.
    assert [row["checkpoint_seconds"] > 0 for row in log] == [True, False, True, True]


def test_a_run_that_ends_in_skipped_steps_says_so(runs: tuple[Path, str]) -> None:
    out = runs[0] / "diverging"
    skipped = [row["applied"] for row in rows(out)].count(False)
    assert 0 < skipped < 4 and not rows(out)[-1]["applied"] and run_folder.finished(out)
    assert f"WARNING: {out}: {skipped} of 4 steps skipped" in runs[1]


def test_a_plateau_that_ends_the_run_leaves_its_last_row(runs: tuple[Path, str]) -> None:
    log = rows(runs[0] / "plateau")
    assert 1 < len(log) < 9 and all("valid_loss" in row for row in log)


def test_seconds_of_steps_that_are_not_logged_are_in_the_next_row() -> None:
    taken = iter([{"data": 1.0, "forward": 2.0}, {"forward": 4.0}, {"forward": 8.0, "other": 16.0}])
    laps: list[str] = []
    clock = SimpleNamespace(take=lambda: next(taken), lap=laps.append)
    since_logged: Counter[str] = Counter()
    found = []
    for logged in (False, True, True):
        row = {"units": 24, "logged": logged}
        loop._tell([], row, clock, since_logged)
        found.append((row["seconds"], row["data_seconds"], row["forward_seconds"], row["units_per_second"]))
    assert found == [(3.0, 1.0, 2.0, 8.0), (7.0, 1.0, 6.0, 6.0), (24.0, 0.0, 8.0, 1.0)]
    assert laps == ["other"] * 3, "what the hooks took is in the next row"


@pytest.mark.parametrize("cut", ["", "\0\0\0\0\0", '"}\n[]\n5\nnull\n{}\n', "\udcff\n"])
def test_log_drops_rows_that_come_again(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonLog(path, 0)
    for step in range(1, 6):
        log.step({"step": step, "loss": float("nan") if step == 2 else 0.1 + step, "logged": step != 3})
    log.close()
    with open(path, "a", errors="surrogateescape") as f:
        f.write('{"step": 6, "lo' + cut)  # killed while writing, or the power went
    log = JsonLog(path, 4)
    log.step({"step": 5, "loss": 1e300, "logged": True})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [
        {"step": 1, "loss": 1.1},
        {"step": 2, "loss": None},
        {"step": 4, "loss": 4.1},
        {"step": 5, "loss": 1e300},
    ]


def strict(text: str) -> Any:
    """Parsed as JSON says: Python also takes NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl", 0)
    log.step({"step": 1, "entropy": [[math.nan, 0.5], [math.inf, 1.0]], "logged": True})
    log.close()
    row = strict((tmp_path / "log.jsonl").read_text())
    assert row == {"step": 1, "entropy": [[None, 0.5], [None, 1.0]]}
    for state in (LoopState(3), LoopState(4, 1, Plateau(2.5, 1, 1), skipped=2)):
        assert LoopState.from_json(strict(json.dumps(state.to_json()))) == state


def test_a_log_without_a_checkpoint_is_not_emptied_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for steps_done, said in ((0, False), (1, False), (0, True)):
        log = JsonLog(tmp_path / "log.jsonl", steps_done)
        log.step({"step": steps_done + 1, "logged": True})
        log.close()
        assert (f"{tmp_path} has logged steps and no checkpoint of them" in capfd.readouterr().err) == said


def test_a_log_that_was_damaged_or_lost_is_not_shortened_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    whole = b"".join(b'{"step": %d}\n' % step for step in range(1, 5))
    damaged = whole.replace(b'{"step": 2}', b'{"st\xff\x00: 2}').replace(b'{"step": 4}\n', b'{"step": 4')
    path.write_bytes(damaged)
    JsonLog(path, 3).close()
    said = capfd.readouterr().err
    assert f"WARNING: {path}: line 2 cannot be read and is left out" in said and "log.jsonl.damaged" in said
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == damaged
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
    JsonLog(path, 3).close()
    assert "WARNING" not in capfd.readouterr().err
    path.unlink()
    JsonLog(path, 0).close()
    assert "WARNING" not in capfd.readouterr().err, "a run that begins"
    path.unlink()
    JsonLog(path, 3).close()
    assert f"WARNING: {path} is gone: the steps up to 3 will be missing" in capfd.readouterr().err


def test_the_first_damaged_lines_of_a_log_are_named_the_others_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    for damaged, named in (
        (b"junk\n" * 5, "line 1, 2, 3, 4, 5 cannot be read"),
        (b"junk\n" * 6 + b"[" * 100_000 + b"\n", "line 1, 2, 3, 4, 5 and 2 more cannot be read"),
    ):
        path.write_bytes(damaged + b'{"step": 1}\n')
        JsonLog(path, 1).close()
        assert named in capfd.readouterr().err
        assert path.read_bytes() == b'{"step": 1}\n'


def test_the_end_of_a_run_tells_of_skipped_steps() -> None:
    said = loop._skipped(Path("run"), 0.1, LoopState(9, skipped=2))
    assert said == "run: 2 of 9 steps skipped, with a non-finite loss or gradient."
    said = loop._skipped(Path("run"), 0.1, LoopState(9, 3, skipped=4))
    assert said.startswith("WARNING: run: 4 of 9 steps skipped") and "is that of step 6" in said
    assert "run/log.jsonl, lower --lr (0.1)" in said


def test_a_run_that_is_stopped_before_its_first_step_has_saved_nothing() -> None:
    said = [str(loop._interrupted(Path("run"), LoopState(step), "SIGTERM")) for step in (0, 1)]
    assert "before its first step, so nothing had to be saved" in said[0] and "step 0" not in said[0]
    assert "to stop: saved at step 1. Run the same command again" in said[1]


def test_a_row_that_is_cut_by_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """The system writes what has room and calls that a success."""
    log = JsonLog(tmp_path / "log.jsonl", 0)
    room, file = 20, log._file

    def write(line: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = file.write(line[:room])
        room -= written
        return written

    log._file = SimpleNamespace(write=write, close=file.close)  # type: ignore[assignment]
    log.step({"step": 1, "logged": True})
    with pytest.raises(GlomoError, match=r"cannot write .*log\.jsonl: No space left"):
        log.step({"step": 2, "logged": True})
    log.close()
    JsonLog(tmp_path / "log.jsonl", 1).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'
