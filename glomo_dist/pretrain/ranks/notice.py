"""The word that ranks leave for the program that started them, about an error on which they all agree.

It lies in the launch's folder in the run folder, or, where that disk is full or the folder has gone, in the folder
for temporary files.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import GlomoError

PID = ".pid"  # files beside it, by which the program knows the ranks


def leave(path: Path, error: GlomoError) -> None:
    """Write the error down for `take`."""
    value = {"type": type(error).__name__, "message": str(error)}
    if path.parent.is_dir():  # else it would be made anew, where the run is to be moved back to
        with contextlib.suppress(GlomoError):
            json_files.write_json(path, value)
            return
    json_files.write_json(_second(path), value)


def take(path: Path) -> dict[str, Any] | None:
    """{"type": name of the error, "message"}, taken away; None where nothing was left."""
    for place in (path, _second(path)):
        with contextlib.suppress(GlomoError, OSError):  # not there, or cut by a full disk
            word: dict[str, Any] = json_files.read_json(place)
            place.unlink()
            return word
    return None


def _second(path: Path) -> Path:
    # .launch-0123abcd has a random part
    return Path(tempfile.gettempdir(), f"glomo{path.parent.name}-{path.name}")
