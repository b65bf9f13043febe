"""What watches a run, on rank 0: progress bar, log.jsonl, TensorBoard. None of it changes the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from glomo_dist.runtime import files
from glomo_dist.runtime.progress import bar, say


class Hook(Protocol):
    def step(self, row: dict[str, Any]) -> None:
        """After every optimizer step. row: see `loop.row`; graph statistics only when `row["logged"]`."""

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
                "not finite; step skipped."
            )
        if row.get("empty_rows"):
            flat = [share for layer in row["empty_rows"] for share in layer]
            self._empty = f"{100 * sum(flat) / len(flat):.0f}%"
        rate = row["units"] / row["seconds"] if row["seconds"] else 0.0
        self._bar.set_postfix_str(
            f"loss {_number(row['loss'])}, {rate / 1000:.1f}k units/s, grad {_number(row['grad_norm'])}"
            + (f", empty rows {self._empty}" if self._empty else ""),
            refresh=False,
        )
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


class JsonLog:
    """log.jsonl; rows of steps that a resumed run does again are dropped first: each step is there once."""

    def __init__(self, path: Path, start: int) -> None:
        if path.exists():
            files.write_bytes(path, b"".join(_rows_until(path.read_bytes(), start)))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def step(self, row: dict[str, Any]) -> None:
        if row["logged"]:
            public = {key: value for key, value in row.items() if key != "logged"}
            self._file.write(json.dumps(_finite(public)) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars per logged step; graph statistics per layer and head."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def step(self, row: dict[str, Any]) -> None:
        if not row["logged"]:
            return
        for name, value in row.items():
            if isinstance(value, list):
                for layer, heads in enumerate(value):
                    for head, number in enumerate(heads):
                        self._writer.add_scalar(f"{name}/layer{layer}/head{head}", number, row["step"])
            elif isinstance(value, (int, float)) and name not in ("step", "logged"):
                self._writer.add_scalar(f"train/{name}", value, row["step"])

    def close(self) -> None:
        self._writer.close()


def open_hooks(out: Path, start: int, steps: int) -> Sequence[Hook]:
    return (
        JsonLog(out / "log.jsonl", start),
        TensorBoard(out / "tensorboard", start),
        ProgressBar(start, steps),
    )


def _rows_until(content: bytes, step: int) -> list[bytes]:
    rows = []
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the row that was being written when the run was killed
            continue
        if row["step"] <= step and line.endswith(b"\n"):
            rows.append(line)
    return rows


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity as null: they are not JSON."""
    return {
        key: None if isinstance(value, float) and not abs(value) < float("inf") else value
        for key, value in row.items()
    }


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"
