"""The file of `glomo bench --csv`: looked at before anything is measured, and written as it is measured."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch

from glomo_dist.cli import main

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))
run = importlib.import_module("run")

HEADER = ",".join(run.COLUMNS)
ROW = ",".join(["1"] * len(run.COLUMNS))


def ones():
    return [torch.ones(1)]


@pytest.fixture
def measured(monkeypatch):
    """The cases that were begun, of two that are small."""
    begun = []

    def cases(quick):
        for op in ("first", "second"):
            begun.append(op)
            yield run.Case(op, "B1", {"plain": ones, "ours": ones})

    monkeypatch.setattr(run, "cases", cases)
    return begun


def bench(path):
    return run.main(["--rounds", "1", "--csv", str(path)])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_added(measured, tmp_path):
    path = tmp_path / "new" / "here.csv"
    assert bench(path) == bench(path) == 0
    assert path.read_bytes().count(HEADER.encode()) == 1
    found = [(row["op"], row["run"]) for row in rows(path)]
    assert found == 2 * [(op, name) for op in ("first", "second") for name in ("plain", "ours")]


@pytest.mark.parametrize("old", ["", f"{HEADER}\r\n", f"{HEADER}\n{ROW}\n", HEADER, f"{HEADER}\r\n{ROW}"])
def test_what_is_there_stays_whole(measured, tmp_path, old):
    path = tmp_path / "here.csv"
    path.write_bytes(old.encode())
    assert bench(path) == 0
    assert path.read_bytes().startswith(old.encode() or HEADER.encode())
    found = rows(path)
    assert len(found) == 4 + old.count(ROW) and all(None not in row and row["date"] for row in found)


@pytest.mark.parametrize(
    "old", ["op,shape,run\r\na,b,c\r\n", "\n", "dear diary", f"{HEADER},gpu\n", b"\xff\xfe"]
)
def test_a_file_of_something_else_is_refused_before_anything_is_measured(measured, tmp_path, old):
    path = tmp_path / "here.csv"
    path.write_bytes(old if isinstance(old, bytes) else old.encode())
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=rf"here.csv: does not begin with the line {HEADER}\. Name another"):
        bench(path)
    assert path.read_bytes() == before and not measured


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(measured, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "here.csv")
    for path in (tmp_path, tmp_path / "file" / "here.csv", tmp_path / "link"):
        with pytest.raises(SystemExit, match=rf"--csv {path}: cannot be written \(.+\). Name another file"):
            bench(path)
    assert not measured


def test_a_case_is_kept_when_the_next_one_ends_the_program(measured, monkeypatch, tmp_path):
    def broken(case):
        if case.op == "second":
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "disagreement", broken)
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path / "here.csv")
    assert [row["op"] for row in rows(tmp_path / "here.csv")] == ["first", "first"]


def test_the_factor_of_an_even_number_of_rounds_is_the_median(measured, monkeypatch, capsys):
    monkeypatch.setattr(run, "measure", lambda runs, rounds: {"plain": [1.0, 3.0], "ours": [1.0, 1.0]})
    assert run.main(["--rounds", "2"]) == 0
    assert "2.00x" in capsys.readouterr().out


def test_an_op_that_is_none_is_refused(measured, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--only", "afinity_mix"])
    assert "affinity_mix" in capsys.readouterr().err and not measured


def test_no_round_at_all_is_refused(measured, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err and not measured


def test_the_command_says_so(tmp_path, capfd):
    assert main(["bench", "--csv", str(tmp_path)]) == 2
    said = capfd.readouterr()
    assert f"--csv {tmp_path}: cannot be written (Is a directory)" in said.err
    assert "Traceback" not in said.err and not said.out
