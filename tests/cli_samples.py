"""The program, called in this process as a person calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from glomo_dist.cli import main

Capture = pytest.CaptureFixture[str]


def run(argv: Sequence[str | Path]) -> int:
    """Exit code of the program, also where the argument parser exits by itself."""
    try:
        return main([str(word) for word in argv])
    except SystemExit as e:
        return int(e.code or 0)


def refused(argv: Sequence[str | Path], capfd: Capture, *words: str | Path) -> str:
    """The program ends with 2 and one line on stderr that has all `words`; returns it."""
    capfd.readouterr()
    assert run(argv) == 2
    error = capfd.readouterr().err
    line = next((line for line in error.splitlines() if line.startswith("glomo: ")), "")
    assert line, f"no message in: {error}"
    for word in words:
        assert str(word) in line, f"{word!r} is not in: {line}"
    assert "Traceback" not in error
    return line


def nothing_at(*paths: Path) -> None:
    """None of the outputs exists, and no temporary folder is left beside them."""
    for path in paths:
        assert not path.exists()
        marks = (".tmp", f".{path.name}")
        left = [
            p.name for p in path.parent.iterdir() if p.name.endswith(marks[0]) or p.name.startswith(marks[1])
        ]
        assert not left, f"left behind: {left}"
