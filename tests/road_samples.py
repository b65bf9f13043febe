"""What the fixtures `raw` and `road` hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Raw:
    """Small real inputs. text: chapters of Python's documentation; docstrings: labelled rows of a task, by chapter;
    digits: 8 x 8 images."""

    folder: Path
    text: Path
    docstrings: Path
    digits: Path


@dataclass(frozen=True)
class Road:
    """Folders that each stage wrote, with the commands of the README."""

    raw: Raw
    text_shards: Path
    digit_shards: Path
    text_run: Path
    digit_run: Path
