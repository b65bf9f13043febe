"""Pretraining runs in the report: their folders, read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.data.storage.files import listed
from glomo_dist.pretrain.output.run_folder import CONFIG, LOG
from glomo_dist.report.names import folder_names
from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.json_files import read_json

_LARGEST = float(np.finfo(np.float32).max)  # of what a run logs; above it a number is not finite


@dataclass(frozen=True)
class Row:
    """A row of log.jsonl.

    loss: NaN where it was not finite.
    valid_loss: NaN where there is none.
    applied: False for a step that was skipped; each of these has a row.
    seconds: since the row before.
    empty_rows: share per layer and head, [L, K].
    """

    step: int
    loss: float
    valid_loss: float
    seconds: float
    empty_rows: np.ndarray[Any, Any] | None
    applied: bool


@dataclass(frozen=True)
class Run:
    """name: tells it from the other runs of the report.  log: the rows of log.jsonl, ascending."""

    name: str
    config: dict[str, Any]
    log: list[Row]

    @property
    def rows(self) -> list[Row]:
        """Those with a loss."""
        return [row for row in self.log if not math.isnan(row.loss)]

    @property
    def steps(self) -> int:
        return self.log[-1].step

    @property
    def skipped(self) -> int:
        return sum(not row.applied for row in self.log)

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.log)


def read_runs(folders: str | Path | Sequence[str | Path]) -> list[Run]:
    """Run folders of `glomo pretrain`; one that is named twice counts once.

    Raises DataError naming the file, and the line, if it cannot be read.
    """
    given = {Path(folder).resolve(): Path(folder) for folder in listed(folders)}
    return [
        _read_run(folder, name)
        for folder, name in zip(given.values(), folder_names(list(given)), strict=True)
    ]


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is no folder. Give the folder of a pretraining run.")
    if not (folder / CONFIG).exists():
        raise DataError(
            f"{folder} is no run of `glomo pretrain`: {CONFIG} is missing. Give the folder of its --out."
        )
    config = _config(folder / CONFIG)
    return Run(name, config, _rows(folder / LOG))


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        raise DataError(
            f"{path} does not exist. Give the folder of a pretraining run (glomo pretrain --out)."
        )
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as e:
        raise DataError(f"{path} cannot be read: {describe(e)}. Expected the log of a run.") from e
    steps: dict[int, Row] = {}
    shape: tuple[int, ...] | None = None
    for number, line in enumerate(lines, 1):
        try:
            row = _row(json.loads(line))
            if row is not None and row.empty_rows is not None:
                shape = shape or row.empty_rows.shape
                if row.empty_rows.shape != shape:
                    raise ValueError(f"empty_rows of shape {row.empty_rows.shape}, before of shape {shape}")
        except json.JSONDecodeError as e:
            if number == len(lines):
                break  # a run that is still writing, or was killed while it did
            raise _damaged(path, number, f"not valid JSON ({e.msg})") from None
        except (ValueError, RecursionError) as e:
            raise _damaged(path, number, str(e)) from None
        if row is not None:
            steps[row.step] = row  # steps after the last checkpoint are logged again on resume
    if all(math.isnan(row.loss) for row in steps.values()):
        raise DataError(
            f"{path}: no row with a step and a loss. The run has not begun, or this is another file."
        )
    return [steps[step] for step in sorted(steps)]


def _damaged(path: Path, number: int, what: str) -> DataError:
    return DataError(
        f"{path}, line {number}: {what}. The file is damaged: delete the line, or leave the run out."
    )


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    data = config.get("data", {}) if isinstance(config, dict) else None
    if isinstance(data, dict):
        texts = [data.get("folder", ""), data.get("fingerprint", ""), config.get("command", "")]
        if all(isinstance(text, str) for text in texts):
            return config  # type: ignore[no-any-return]
    raise DataError(
        f"{path}: not the configuration of a pretraining run (an object in which data.folder, data.fingerprint and "
        "command are text). The file is damaged: leave the run out."
    )


def _row(row: Any) -> Row | None:
    """A row of the log, None if it is of no step. ValueError if a value is not of its type."""
    if not isinstance(row, dict) or "step" not in row:
        return None
    loss = _number("loss", row.get("loss"))
    step = row["step"]
    if type(step) is not int or not 0 <= step < 2**53:
        raise ValueError(f"step must be a whole number, got {str(step)!r:.60}")
    seconds = _number("seconds", row.get("seconds"))
    if math.isnan(seconds):
        raise ValueError(f"seconds must be finite, got {str(row.get('seconds'))!r:.60}")
    valid_loss, empty_rows = _number("valid_loss", row.get("valid_loss")), _empty_rows(row.get("empty_rows"))
    return Row(step, loss, valid_loss, seconds, empty_rows, row.get("applied") is not False)


def _number(name: str, value: Any) -> float:
    """NaN for null: it was not finite."""
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number, got {str(value)!r:.60}")
    return float(value) if abs(value) <= _LARGEST else math.nan


def _empty_rows(values: Any) -> np.ndarray[Any, Any] | None:
    """None where they were not asked for: a step that is logged only because it was skipped."""
    if values is None:
        return None
    try:
        shares = np.asarray(values, float)
    except (TypeError, ValueError, OverflowError):
        shares = np.empty(0)
    if shares.ndim != 2 or not shares.size:
        raise ValueError(f"empty_rows must be numbers per layer and head, got {str(values)!r:.60}")
    return shares
