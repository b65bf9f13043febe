"""JSON files: what cannot be read is named, and names that are no text come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.json_files import read_json, write_json


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "a.json" / "b.json", "Not a directory")):
        with pytest.raises(DataError, match=f"{path} cannot be read: {reason}"):
            read_json(path)
    (tmp_path / "a.json").write_text("9" * 5000)
    with pytest.raises(DataError, match=r"a.json: JSON that cannot be read .*digits"):
        read_json(tmp_path / "a.json")


def test_json_of_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9.tar")
    write_json(tmp_path / name, {name: "é"})
    assert read_json(tmp_path / name) == {name: "é"}
