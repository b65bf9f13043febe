"""What a part of `make gpu` is given: where it may write, how long it may take, and on what it runs."""

from __future__ import annotations

import csv
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[3]
SPOILED = 86  # exit code of a process that has made the device useless for itself
KERNELS_FAILED = 87  # exit code of every_kernel where a kernel failed
X = TypeVar("X")


@dataclass
class Part:
    """One part, in a process of its own.

    out: folder of the results.  notes: file for the lines of the short table at the end.
    dry: on a CPU, with tiny shapes and Triton's interpreter.  seconds: that it may take.
    first: the step to go on with, where an earlier process of this part has not come to its end.
    """

    out: Path
    notes: Path
    dry: bool
    seconds: float
    first: int = 0
    began: float = field(default_factory=time.monotonic)
    _steps: int = 0

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

    def steps(self, things: Iterable[X]) -> Iterator[X]:
        """Those that no earlier process of this part has begun. One that ends its process, hangs or spoils the
        device is the last there; another process goes on behind it."""
        file = step_file(self.notes.parent)
        for thing in things:
            number, self._steps = self._steps, self._steps + 1
            if number < self.first:
                continue
            new = file.with_suffix(".new")
            new.write_text(f"{number}")
            new.replace(file)  # whole at any time: the process may be ended at any
            yield thing
            if not self.dry and spoiled():
                raise SystemExit(SPOILED)
        file.unlink(missing_ok=True)

    def attempt(self, wrong: list[str], what: str, function: Callable[[], X]) -> X | None:
        """What it returns; None where it fails, which is noted, and what comes after it is done all the same."""
        try:
            return function()
        except Exception as error:
            traceback.print_exc()
            wrong.append(f"{what} failed")
            self.note(f"{what} FAILED: {type(error).__name__}: {error}".splitlines()[0][:160])
            return None

    def alive(self) -> None:
        """A step that takes long has come a part of its way."""
        os.utime(step_file(self.notes.parent))

    @contextmanager
    def table(self, name: str, columns: Sequence[str]) -> Iterator[Table]:
        """out/<name>.csv, begun anew by the first process; every row is on disk when `add` returns."""
        with (self.out / f"{name}.csv").open("a" if self.first else "w", newline="") as file:
            yield Table(file, columns)


class Table:
    def __init__(self, file: Any, columns: Sequence[str]) -> None:
        self._file = file
        self._writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if file.tell() == 0:
            self._writer.writeheader()

    def add(self, **row: Any) -> None:
        self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self._file.flush()


def step_file(scratch: Path) -> Path:
    """Holds the number of the step that a part is in; before and behind all steps there is none."""
    return scratch / "step"


def spoiled() -> bool:
    """Whether the device answers everything with an error, as it does after an illegal address."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


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
