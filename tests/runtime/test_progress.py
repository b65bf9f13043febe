"""Bars and lines on a stderr that fails: the work goes on, and the exit code is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glomo_dist.runtime.progress import bar, say

PROGRAM = """
import sys
from pathlib import Path
from glomo_dist.runtime.progress import bar, say

shown = bar(total=3, mininterval=0)
for number in range(3):
    shown.update()
    say(f"line {number}")
shown.close()
Path(sys.argv[1]).write_text("done")
sys.exit(75)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("where", ["full", "unread"])
def test_work_goes_on_where_stderr_takes_nothing(where: str, unbuffered: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, os.fdopen(writer, "wb") as unread:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "end")],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stderr=full if where == "full" else unread,
        )
    assert done.returncode == 75 and (tmp_path / "end").read_text() == "done"


def test_what_is_said_after_the_disk_has_room_again_is_seen(tmp_path: Path) -> None:
    """One stream fails and then does not: here a pipe without a reader that becomes a file."""
    program = """
import os, sys
from glomo_dist.runtime.progress import say
reader, writer = os.pipe()
os.close(reader)
log = os.dup(2)
os.dup2(writer, 2)
say("lost")
os.dup2(log, 2)
say("seen")
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, check=True)
    assert done.stderr == b"seen\n"


def test_work_goes_on_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a program whose stderr was closed (2>&-) before it began."""
    monkeypatch.setattr(sys, "stderr", None)
    with bar(total=1, mininterval=0) as progress:
        progress.update()
        say("to nobody")


def test_a_bar_does_not_follow_the_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tqdm.std.time", iter(range(10**9, 0, -3600)).__next__)
    with bar(total=3, mininterval=0) as progress:
        for _ in range(3):
            progress.update()
            assert 0 <= progress.format_dict["elapsed"] < 60
    said = capsys.readouterr().err
    assert all(f"{n}/3 [00:0" in said for n in range(4)), said
