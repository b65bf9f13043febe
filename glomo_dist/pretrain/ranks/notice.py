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


def leave(path: Path, error: GlomoError) -> bool:
    """Write the error down for `take`; whether there was a place for it."""
    value = {"type": type(error).__name__, "message": str(error)}
    for place in _places(path):
        if place.parent.is_dir():  # else it would be made anew, where the run is to be moved back to
            with contextlib.suppress(GlomoError):
                json_files.write_json(place, value)
                return True
    return False


def take(path: Path) -> dict[str, Any] | None:
    """{"type": name of the error, "message"}, taken away; None where nothing was left."""
    for place in _places(path):
        with contextlib.suppress(GlomoError, OSError):  # not there, or cut by a full disk
            word: dict[str, Any] = json_files.read_json(place)
            place.unlink()
            return word
    return None


def _places(path: Path) -> list[Path]:
    places = [path]
    with contextlib.suppress(FileNotFoundError):  # no folder for temporary files can be written to
        # .launch-0123abcd has a random part
        places.append(Path(tempfile.gettempdir(), f"glomo{path.parent.name}-{path.name}"))
    return places
