"""The program where the shell, the terminal and the machine are not as usual."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from road_samples import Road

from glomo_dist.cli import main, pretrain
from glomo_dist.cli.arguments import recipe_of
from glomo_dist.cli.evaluate import Evaluate
from glomo_dist.runtime import fingerprint
from glomo_dist.runtime.processes import import_path

GLOMO = [sys.executable, "-m", "glomo_dist.cli"]


def environment(**changes: str) -> dict[str, str]:
    names = ("NO_COLOR", "PYTHON_TYRO_ANSI_CODES", "PYTHONUNBUFFERED")
    ours = {name: value for name, value in os.environ.items() if name not in names}
    return {**ours, "PYTHONPATH": import_path(), **changes}


HELP = [(argv, unbuffered) for argv in (["--help"], ["bench", "--help"]) for unbuffered in ("1", "")]


@pytest.mark.parametrize(("argv", "unbuffered"), [*HELP, (["bench", "--rounds", "1"], "")])
def test_output_that_nobody_reads(argv: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*GLOMO, *argv], env=environment(PYTHONUNBUFFERED=unbuffered), stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_broken_pipe_inside_a_command_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("glomo_dist.cli.bench.main", broken)
    with pytest.raises(BrokenPipeError):
        main(["bench"])


@pytest.mark.parametrize(("argv", "unbuffered"), [*HELP, (["bench", "--rounds", "1"], "1")])
def test_output_on_a_full_disk(argv: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*GLOMO, *argv], env=environment(PYTHONUNBUFFERED=unbuffered), stdout=full, stderr=subprocess.PIPE
        )
    said = b"glomo: cannot write the output: No space left on device. Free space or send it elsewhere.\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_bug_is_seen_also_when_the_output_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def wrong(argv: object) -> None:
        monkeypatch.setattr(sys.stdout, "flush", full)
        raise ValueError("a bug")

    monkeypatch.setattr("glomo_dist.cli.bench.main", wrong)
    with pytest.raises(ValueError, match="a bug"):
        main(["bench"])


def test_errors_on_a_terminal_that_is_gone() -> None:
    terminal, theirs = pty.openpty()
    os.close(terminal)
    done = subprocess.run([*GLOMO, "no-such-command"], env=environment(), stderr=theirs, check=False)
    os.close(theirs)
    assert done.returncode == 2


def test_an_error_on_a_closed_stream(tmp_path: Path) -> None:
    command = [*GLOMO, "prepare", "text", os.fsdecode(b"caf\xe9.txt"), "--out", "out"]
    done = subprocess.run(
        f"{shlex.join(command)} 2>&-", shell=True, env=environment(), cwd=tmp_path, check=False
    )
    assert done.returncode == 2


def test_closed_streams(tmp_path: Path) -> None:
    """Nothing is said, and no file gets the number of a stream."""
    (tmp_path / "a.txt").write_text("some words")
    command = shlex.join([*GLOMO, "prepare", "text", "a.txt", "--out", "out"])
    done = subprocess.run(f"{command} <&- >&- 2>&-", shell=True, env=environment(), cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "out" / "index.json").read_text())["tokens"] == 2


def test_signs_that_the_terminal_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    monkeypatch.setattr("glomo_dist.cli.overview", lambda: "72.00 ± 2.00 [−0.48] – ── caf\udce9 \u8bed")
    assert main(["--help"]) == 0
    assert shown.getvalue() == b"72.00 +- 2.00 [-0.48] - -- caf? ?\n"


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {}])
def test_no_colours_where_they_are_not_wanted(changes: dict[str, str]) -> None:
    """NO_COLOR; stdout is a terminal, but errors go into a file."""
    terminal, theirs = pty.openpty()
    stderr = theirs if changes else subprocess.PIPE
    done = subprocess.run(
        [*GLOMO, "bench", "--hepl"], env=environment(TERM="xterm", **changes), stdout=theirs, stderr=stderr
    )
    os.close(theirs)
    text = done.stderr or os.read(terminal, 1 << 16)
    os.close(terminal)
    assert b"Unrecognized" in text and b"\x1b[" not in text


@pytest.fixture
def fresh_version() -> Iterator[None]:
    fingerprint.code_version.cache_clear()
    yield
    fingerprint.code_version.cache_clear()


def test_version_without_git_and_inside_a_hook(
    fresh_version: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = fingerprint.code_version()
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    fingerprint.code_version.cache_clear()
    assert fingerprint.code_version() == here
    # git is asked with its own configuration, and refuses
    monkeypatch.setenv("GIT_CONFIG_COUNT", "not a number")
    fingerprint.code_version.cache_clear()
    assert fingerprint.code_version() == here.partition("+")[0]
    monkeypatch.delenv("GIT_CONFIG_COUNT")
    monkeypatch.setenv("PATH", str(tmp_path))
    fingerprint.code_version.cache_clear()
    assert fingerprint.code_version() == here.partition("+")[0]


@pytest.mark.parametrize(
    "flags", [["--recipe", "tiny", "--recipe=base"], ["--recipe=tiny", "--recipe", "base"], ["--recipe=base"]]
)
def test_of_recipes_the_last_counts_everywhere(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []

    def no_run(config: object, shards: str, out: str, *_: object, **__: object) -> str:
        ran.append(config)
        return out

    monkeypatch.setattr(pretrain, "pretrain", no_run)
    assert main(["pretrain", "shards", "--out", "run", *flags]) == 0
    assert recipe_of(flags, "tiny") == "base" and ran == [pretrain.recipes.get("base")]


def test_in_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (gone := tmp_path / "scratch").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["prepare", "text", "corpus.txt", "--out", "shards"]) == 2
    assert capsys.readouterr().err == (
        "glomo: the current folder cannot be found any more (No such file or directory). "
        "Change to one that is there.\n"
    )


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("some words")
    assert main(["prepare", "text", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 0
    kept = json.loads((tmp_path / "out" / "command.json").read_text(encoding="utf-8"))
    assert kept["arguments"]["sources"] == [str(tmp_path / name)]


@pytest.mark.parametrize(
    ("flags", "arm"), [([], "pretrained"), (["--random-seed", "0", "--max-units", "9"], "random")]
)
def test_what_export_says_comes_next_can_be_run(
    flags: list[str], arm: str, road: Road, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "my graphs"
    export = ["export", road.text_run, "--task", "docstring", "--source", road.raw.docstrings, "--out", out]
    assert main([str(word) for word in [*export, "--max-examples", "4", *flags]]) == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("next: ")]
    given: list[Evaluate] = []
    monkeypatch.setattr("glomo_dist.cli.evaluate._plan", lambda command, *_: given.append(command))
    monkeypatch.setattr("glomo_dist.evaluate.plan_jobs", lambda plan: sys.exit(0))
    with pytest.raises(SystemExit):
        main(shlex.split(line.removeprefix("next: glomo ")))
    (command,) = given
    assert command.arms == ("none", "uniform", f"{arm}={out}")
    assert command.sources == (f"docstring={road.raw.docstrings}",)
    assert command.settings.max_examples == 4
    assert command.settings.max_units == (9 if flags else None)
