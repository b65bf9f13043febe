"""log.jsonl: one row per logged step, whatever ended the run before."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from glomo_dist.pretrain.output import run_folder
from glomo_dist.runtime import files
from glomo_dist.runtime.progress import say


class JsonLog:
    """log.jsonl; rows of steps that a resumed run does again are dropped first: each step is there once."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        with files.writing(path, run_folder.GO_ON):
            if path.exists():
                _keep_until(path, start)
            elif start:
                say(
                    f"WARNING: {path} is gone: the steps up to {start} will be missing in it. The training does not "
                    "depend on it."
                )
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def step(self, row: dict[str, Any]) -> None:
        if row["logged"]:
            public = {key: value for key, value in row.items() if key != "logged"}
            line = (json.dumps(_finite(public)) + "\n").encode()
            with files.writing(self._path, run_folder.GO_ON):
                while line:  # where the disk becomes full a part is written, and only the next write says so
                    line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Leave the rows up to `step` in the log."""
    content = path.read_bytes()
    if step == 0 and content:
        say(f"{path.parent} has logged steps and no checkpoint of them: it begins again.")
    rows, damaged = _rows_until(content, step)
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        files.write_bytes(aside, content, run_folder.GO_ON)
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        say(
            f"WARNING: {path}: line {', '.join(map(str, damaged[:5]))}{more} cannot be read and is left out; as it "
            f"was, the log is kept as {aside.name}. The training does not depend on it."
        )
    files.write_bytes(path, b"".join(rows), run_folder.GO_ON)


def _rows_until(content: bytes, step: int) -> tuple[list[bytes], list[int]]:
    """The rows up to `step`, and the numbers, from 1, of lines before the last that are no rows.

    The last line may have been cut by what ended the run.
    """
    rows, damaged = [], []
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("step"), int) and line.endswith(b"\n")):
            if number < len(lines):
                damaged.append(number)
        elif row["step"] <= step:
            rows.append(line)
    return rows, damaged


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinity, also inside lists and dictionaries: they are not JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
