"""What a part of `make gpu` is given: where it may write, how long it may take, and on what it runs."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Part:
    """One part, in a process of its own.

    out: folder of the results.  notes: file for the lines of the short table at the end.
    dry: on a CPU, with tiny shapes and Triton's interpreter.  seconds: that it may take.
    """

    out: Path
    notes: Path
    dry: bool
    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def note(self, line: str) -> None:
        """A line of the short table, on disk at once."""
        print(line, flush=True)
        with self.notes.open("a") as file:
            file.write(line + "\n")

    @contextmanager
    def table(self, name: str, columns: Sequence[str]) -> Iterator[Table]:
        """out/<name>.csv, begun anew; every row is on disk when `add` returns."""
        with (self.out / f"{name}.csv").open("w", newline="") as file:
            yield Table(file, columns)


class Table:
    def __init__(self, file: Any, columns: Sequence[str]) -> None:
        self._file = file
        self._writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        self._writer.writeheader()

    def add(self, **row: Any) -> None:
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self._file.flush()


def read_table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def machine() -> dict[str, Any]:
    """Versions and the device, for the head of the summary."""
    import platform

    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "gpu": "none",
    }  # fmt: skip
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "none"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = (
            f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    return found


def dump(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
