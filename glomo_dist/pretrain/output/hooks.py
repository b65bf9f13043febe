"""What watches a run, on rank 0: the log, a progress bar, and the trackers. None of it changes the training."""

from __future__ import annotations

import contextlib
import importlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.output.log import JsonLog
from glomo_dist.pretrain.settings.resolve import ResolvedRun
from glomo_dist.runtime import files, json_files, packages
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import GlomoError, describe
from glomo_dist.runtime.progress import bar, say


class Hook(Protocol):
    """What the loop tells of its steps."""

    def step(self, row: dict[str, Any]) -> None:
        """After every optimizer step. row: a row of log.jsonl; graph statistics only when `row["logged"]`."""

    def close(self) -> None: ...


class ProgressBar:
    """Steps done, time left, loss, units per second over all ranks, gradient norm, empty rows."""

    def __init__(self, start: int, steps: int) -> None:
        self._bar = bar(total=steps, initial=start, desc="pretrain", unit="step")
        self._empty = ""

    def step(self, row: dict[str, Any]) -> None:
        if not row["applied"]:
            say(
                f"WARNING: step {row['step']}: loss {row['loss']}, gradient norm {row['grad_norm']} "
                f"not finite; step skipped. Samples: {', '.join(row['samples'][:8])}"
                + (f" and {len(row['samples']) - 8} more" if len(row["samples"]) > 8 else "")
            )
        if row.get("empty_rows"):
            flat = [share for layer in row["empty_rows"] for share in layer]
            self._empty = f"{100 * sum(flat) / len(flat):.0f}%"
        self._bar.set_postfix_str(
            f"loss {_number(row['loss'])}, {row['units_per_second'] / 1000:.1f}k units/s, "
            f"grad {_number(row['grad_norm'])}" + (f", empty rows {self._empty}" if self._empty else ""),
            refresh=False,
        )
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row by name, for a tracker; graph statistics per layer and head."""
    found = {}
    for name, value in row.items():
        if isinstance(value, list):
            for layer, heads in enumerate(value):
                if isinstance(heads, list):
                    found.update({f"{name}/layer{layer}/head{h}": number for h, number in enumerate(heads)})
        elif isinstance(value, (int, float)) and name not in ("step", "logged"):
            found[f"train/{name}"] = float(value)
    return found


class TensorBoard:
    """Scalars per logged step; those that a resumed run logs again take the place of the old ones."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._folder, self._told = folder, False
        with contextlib.ExitStack() as stack:
            stack.enter_context(_silent_threads())
            with files.writing(folder, run_folder.GO_ON):
                self._writer = SummaryWriter(str(folder), purge_step=start + 1)
            self._silence = stack.pop_all()

    def step(self, row: dict[str, Any]) -> None:
        if row["logged"]:
            self._told = True  # if not all of it is written
            with files.writing(self._folder, run_folder.GO_ON):
                for name, number in scalars(row).items():
                    self._writer.add_scalar(name, number, row["step"])
            self._told = False

    def close(self) -> None:
        with self._silence:
            try:
                self._writer.close()
            except OSError as e:
                if not self._told:
                    say(
                        f"WARNING: {self._folder}: {describe(e)}. The last curves are missing there, not in the log."
                    )


@contextlib.contextmanager
def _silent_threads() -> Iterator[None]:
    """Without the tracebacks of TensorBoard's thread: it hands its error to whoever writes next."""
    before = threading.excepthook

    def others(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = others
    try:
        yield
    finally:
        threading.excepthook = before


class WandB:
    """Weights & Biases; a resumed run goes on under its name. WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, out: Path, config: dict[str, Any]) -> None:
        wandb = _optional("wandb")
        known = out / run_folder.WANDB
        if not known.exists():
            json_files.write_json(known, {"run_id": uuid.uuid4().hex})
        self._run = wandb.init(
            project="glomo-dist", id=json_files.read_json(known)["run_id"], name=out.name, dir=str(out),
            config=config, resume="allow", allow_val_change=True,
        )  # fmt: skip

    def step(self, row: dict[str, Any]) -> None:
        if row["logged"]:
            self._run.log(scalars(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow, where MLFLOW_TRACKING_URI points, else where MLflow itself decides; resumed under the same run."""

    def __init__(self, out: Path, config: dict[str, Any]) -> None:
        self._mlflow = _optional("mlflow")
        known = out / run_folder.MLFLOW
        begun = json_files.read_json(known)["run_id"] if known.exists() else None
        run = self._mlflow.start_run(run_id=begun, run_name=None if begun else out.name)
        if begun is None:
            json_files.write_json(known, {"run_id": run.info.run_id})
            self._mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def step(self, row: dict[str, Any]) -> None:
        if row["logged"]:
            self._mlflow.log_metrics(scalars(row), step=row["step"])

    def close(self) -> None:
        self._mlflow.end_run()


class Guest:
    """Another program's tracker. If it cannot be opened the run does not begin; what fails later only ends it."""

    def __init__(self, name: str, opener: Callable[[], Hook]) -> None:
        self._name = name
        try:
            self._hook: Hook | None = opener()
        except GlomoError:
            raise
        except Exception as e:  # whatever its authors thought of: no account, no server, a refused setting
            raise GlomoError(
                f"tracker {name} cannot be opened: {type(e).__name__}: {e} Mend that, or leave it out of trackers."
            ) from e

    def step(self, row: dict[str, Any]) -> None:
        self._or_leave_it(lambda hook: hook.step(row))

    def close(self) -> None:
        self._or_leave_it(lambda hook: hook.close())

    def _or_leave_it(self, action: Callable[[Hook], None]) -> None:
        if self._hook is None:
            return
        try:
            action(self._hook)
        except Exception as e:  # a run of weeks does not end because a server of curves is down
            say(f"WARNING: tracker {self._name} failed and is left out from here on: {type(e).__name__}: {e}")
            self._hook = None


def _optional(name: str) -> Any:
    require((name,))
    return importlib.import_module(name)


def require(trackers: Sequence[str]) -> None:
    """ConfigError if a tracker's package is not here; asked before any rank is started."""
    for name in trackers:
        if name in ("wandb", "mlflow"):
            packages.require(name, f"tracker {name}", instead="Or leave it out of trackers.")


def open_hooks(job: ResolvedRun, start: int, stack: contextlib.ExitStack) -> list[Hook]:
    """The hooks of a run that goes on after step `start`; `stack` closes them, also when one cannot be opened."""
    openers: dict[str, Callable[[], Hook]] = {
        "log": lambda: JsonLog(job.out / run_folder.LOG, start),
        "tensorboard": lambda: TensorBoard(job.out / run_folder.TENSORBOARD, start),
        "wandb": lambda: Guest("wandb", lambda: WandB(job.out, to_dict(job.config))),
        "mlflow": lambda: Guest("mlflow", lambda: MLflow(job.out, to_dict(job.config))),
        "bar": lambda: ProgressBar(start, job.config.steps),
    }
    opened = []
    for name in ("log", *dict.fromkeys(job.config.trackers), "bar"):
        opened.append(openers[name]())
        stack.callback(opened[-1].close)
    return opened


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"
