"""Trackers: what W&B and MLflow are told, what is said when they are missing (with stand-ins); a disk that fails."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pretrain_samples import TINY

from glomo_dist.pretrain import pretrain
from glomo_dist.pretrain.output import hooks
from glomo_dist.pretrain.output.hooks import Guest, MLflow, TensorBoard, WandB, scalars
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError

ROW: dict[str, Any] = {
    "step": 3, "loss": 1.5, "units": 8, "seconds": 2.0, "units_per_second": 4.0, "applied": True, "logged": True,
    "empty_rows": [[0.1, 0.2]], "samples": ["a"],
}  # fmt: skip
NUMBERS = {
    "train/loss": 1.5,
    "train/applied": 1.0,
    "train/units": 8.0,
    "train/seconds": 2.0,
    "train/units_per_second": 4.0,
    "empty_rows/layer0/head0": 0.1,
    "empty_rows/layer0/head1": 0.2,
}  # fmt: skip


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch, **functions: Any) -> list[tuple[str, Any, Any]]:
    """A module that writes down its calls."""
    calls: list[tuple[str, Any, Any]] = []
    module = ModuleType(name)

    def recorder(function: str, result: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append((function, arguments, named))
            return result

        return call

    for function, result in functions.items():
        setattr(module, function, recorder(function, result))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_row_as_numbers() -> None:
    assert scalars(ROW) == NUMBERS


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((values, step)), finish=lambda: logged.append("end")
    )
    calls = stand_in("wandb", monkeypatch, init=run)
    for micro_batch in (4, 2):  # begun, and resumed: under the same name, also with what is free to change
        hook = WandB(tmp_path, {"lr": 1.0, "micro_batch": micro_batch})
        hook.step(ROW)
        hook.step({**ROW, "logged": False})
        hook.close()
    assert logged == [(NUMBERS, 3), "end"] * 2
    (tmp_path / "wandb.json").unlink()  # as where the folder was deleted and the run begun anew
    WandB(tmp_path, {"lr": 1.0, "micro_batch": 2})
    first, second, other = (named for _, _, named in calls)
    assert first["id"] == second["id"] != other["id"] and second["config"]["micro_batch"] == 2
    assert first["resume"] == "allow" and second["allow_val_change"] and first["dir"] == str(tmp_path)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    calls = stand_in("mlflow", monkeypatch, start_run=run, log_params=None, log_metrics=None, end_run=None)
    for _ in range(2):
        hook = MLflow(tmp_path, {"lr": 1.0})
        hook.step(ROW)
        hook.step({**ROW, "logged": False})
        hook.close()
    assert [name for name, _, _ in calls] == [
        "start_run", "log_params", "log_metrics", "end_run", "start_run", "log_metrics", "end_run",
    ]  # fmt: skip
    assert calls[0][2] == {"run_id": None, "run_name": tmp_path.name} and calls[4][2]["run_id"] == "r1"
    assert calls[2][1:] == ((NUMBERS,), {"step": 3})
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {"run_id": "r1"}


def test_a_tracker_that_cannot_be_opened_is_an_error_and_one_that_fails_later_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    sys.modules["wandb"].init = fail  # type: ignore[attr-defined]
    with pytest.raises(GlomoError, match="tracker wandb cannot be opened: ConnectionError: no server"):
        Guest("wandb", lambda: WandB(tmp_path, {}))
    (tmp_path / "wandb.json").write_text("{")
    with pytest.raises(DataError, match=rf"^{tmp_path}/wandb\.json, line 1: not valid JSON"):
        Guest("wandb", lambda: WandB(tmp_path, {}))
    (tmp_path / "wandb.json").unlink()
    logged: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: logged.append(step) or fail(), finish=lambda: logged.append("end")
    )
    sys.modules["wandb"].init = lambda **_: run  # type: ignore[attr-defined]
    hook = Guest("wandb", lambda: WandB(tmp_path, {}))
    for _ in range(2):
        hook.step(ROW)
    hook.close()
    assert logged == [3] and capfd.readouterr().err.count("wandb failed and is left out") == 1


def test_hooks_go_on_after_the_steps_done_and_end_with_the_run(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, the log first; those that are open are closed also when another cannot be opened."""
    events: list[Any] = []
    refused = ""

    def opener(name: str) -> Any:
        def make(*given: Any) -> Any:
            if name == refused:
                raise ConnectionError("no server")
            events.append((name, *given))
            return SimpleNamespace(close=lambda: events.append(f"{name} closed"))

        return make

    for name in ("JsonLog", "TensorBoard", "WandB", "MLflow", "ProgressBar"):
        monkeypatch.setattr(hooks, name, opener(name))
    config = dataclasses.replace(TINY, trackers=("wandb", "tensorboard", "mlflow", "wandb"))
    job = resolve(config, tiny_shards, tmp_path)
    with contextlib.ExitStack() as stack:
        hooks.open_hooks(job, 4, stack)
    settings = to_dict(job.config)
    assert events == [
        ("JsonLog", tmp_path / "log.jsonl", 4), ("WandB", tmp_path, settings),
        ("TensorBoard", tmp_path / "tensorboard", 4), ("MLflow", tmp_path, settings), ("ProgressBar", 4, TINY.steps),
        *(f"{name} closed" for name in ("ProgressBar", "MLflow", "TensorBoard", "WandB", "JsonLog")),
    ]  # fmt: skip
    for refused in ("WandB", "MLflow"):  # another program's
        events.clear()
        with (
            pytest.raises(GlomoError, match=f"tracker {refused.lower()} cannot be opened: ConnectionError"),
            contextlib.ExitStack() as stack,
        ):
            hooks.open_hooks(job, 0, stack)
        assert events[0][0] == "JsonLog" and events[-1] == "JsonLog closed"


def test_the_progress_bar_and_what_is_said_of_a_skipped_step(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []
    made = SimpleNamespace(set_postfix_str=lambda text, refresh: told.append(text), update=told.append)
    monkeypatch.setattr(hooks, "bar", lambda **given: told.append((given["initial"], given["total"])) or made)
    shown = hooks.ProgressBar(4, 9)
    shown.step({**ROW, "units_per_second": 4321.0, "grad_norm": 0.25})
    shown.step({**ROW, "grad_norm": 54321.0, "empty_rows": None, "applied": False, "samples": [*"abcdefghi"]})
    assert told == [
        (4, 9), "loss 1.500, 4.3k units/s, grad 0.250, empty rows 15%", 1,
        "loss 1.500, 0.0k units/s, grad 5.4e+04, empty rows 15%", 1,
    ]  # fmt: skip
    shown.step({**ROW, "grad_norm": 1.0, "applied": False, "samples": [*"abcdefgh"]})
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and "WARNING: step 3: loss 1.5, gradient norm 54321.0 not finite" in said[0]
    assert said[0].endswith("Samples: a, b, c, d, e, f, g, h and 1 more")
    assert said[1].endswith("Samples: a, b, c, d, e, f, g, h")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_starts(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    config = dataclasses.replace(TINY, trackers=("tensorboard", name))
    with pytest.raises(
        ConfigError, match=rf"tracker {name}: .* not installed\. Install it: pip install {name}\. Or leave"
    ):
        pretrain(config, tiny_shards, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("start", "left"), [(0, [1, 2]), (2, [1, 2, 3, 4])])
def test_curves_have_each_step_once(tmp_path: Path, start: int, left: list[int]) -> None:
    """Also those of a run that ended before its first checkpoint, and begins again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begun, steps in ((0, (1, 2, 3)), (start, (start + 1, start + 2))):
        hook = TensorBoard(tmp_path, begun)
        for step in steps:
            hook.step({**ROW, "step": step})
        hook.step({**ROW, "step": 9, "logged": False})
        hook.close()
    curves = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == left


@pytest.mark.parametrize("when", ["begin", "later", "end"])
def test_a_full_disk_is_said_once_and_without_a_traceback(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes in a thread of its own, whose traceback stood beside the message, or stood there alone."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tracebacks: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    ours = threading.excepthook
    message = rf"cannot write {tmp_path}: No space left on device\. The checkpoints are untouched"
    if when == "begin":
        monkeypatch.setattr(RecordWriter, "write", full)
        with pytest.raises(GlomoError, match=message):
            TensorBoard(tmp_path, 0)
    else:
        hook = TensorBoard(tmp_path, 0)
        hook.step(ROW)
        other = threading.Thread(target=full)
        other.start()
        other.join()
        assert [of.thread for of in tracebacks] == [other]
        tracebacks.clear()
        monkeypatch.setattr(RecordWriter, "write", full)
        monkeypatch.setattr(RecordWriter, "flush", full)
        if when == "later":
            with pytest.raises(GlomoError, match=message):
                for _ in range(100):  # more than the thread has room for
                    hook.step(ROW)
        hook.close()
    said = capfd.readouterr().err.count(f"WARNING: {tmp_path}: No space left on device. The last curves")
    assert not tracebacks and said == (when == "end") and threading.excepthook is ours
