"""Documents that cannot be read: every way they can be bad is told with file, line and remedy."""

from __future__ import annotations

import errno
import gzip
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_samples import texts
from privileges import closed, public_folder

from glomo_dist.data.preparing.sources import TEXT_SUFFIXES, documents
from glomo_dist.data.storage.files import find_files
from glomo_dist.data.storage.packed import open_seekable
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError


def test_a_page_of_a_table_that_is_not_as_it_was_written(tmp_path: Path) -> None:
    """Where its pages have checksums, text that has turned into another is not read."""
    path, table = tmp_path / "t.parquet", pa.table({"text": ["a text of some words"]})
    pq.write_table(
        table,
        path,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    content = path.read_bytes()
    assert [d.text for d in documents([str(path)])] == ["a text of some words"]
    assert content.count(b"some") == 1
    path.write_bytes(content.replace(b"some", b"sOme"))
    with pytest.raises(DataError, match=r"t\.parquet.*crc|t\.parquet.*CRC"):
        list(documents([str(path)]))


BAD_LINES = {
    "not JSON": (b'{"text": "a"}\n{"text": \n', r"line 2: not valid JSON \(Expecting value, column 10\)"),
    "not an object": (b'{"text": "a"}\n[1]\n', r"line 2: expected a JSON object, got list"),
    "no such key": (
        b'{"txt": "a"}\n',
        r"line 1: no key 'text'; set text_key \(--text-key\).*Did you mean 'txt'",
    ),
    "a key twice": (
        b'{"text": "a"}\n{"text": "b", "text": "c"}\n',
        r"line 2: the key 'text' is there twice\. Mend or",
    ),
    "not text": (b'{"text": "a"}\n{"text": 5}\n', r"line 2, key 'text': expected text, got int"),
    "null": (b'{"text": null}\n', r"line 1, key 'text': expected text, got NoneType"),
    "latin 1": ('{"text": "a"}\n{"text": "é"}\n'.encode("latin1"), r"line 2, byte 11 .*0xe9.*not UTF-8"),
    "zero byte": (b'{"text": "a"}\n{"text": "b\\u0000"}\n', r"line 2, key 'text': contains a zero byte"),
    "deep": (b"[" * 100_000 + b"\n", r"line 1: .*Mend or delete"),
    "thousands of digits": (b'{"text": ' + b"1" * 5000 + b"}\n", r"line 1: .*digits.*Mend or delete"),
    "empty": (b"", r"has no text in it"),
    "only empty texts": (b'{"text": "  "}\n', r"has no text in it"),
}


@pytest.mark.parametrize("content, message", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_json_lines(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        texts(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-16be", "utf-32", "utf-32le", "utf-32be"])
@pytest.mark.parametrize("text", ["one fish\n", "\nfish\n", "é\n", "1 Āb\n", "\ufefffish\n"])
def test_the_command_for_text_of_wider_units_makes_that_text_of_it(
    tmp_path: Path, encoding: str, text: str
) -> None:
    """The byte order is that of the mark, or told by where the zero bytes stand."""
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=rf"a\.txt, line [12]: .*{encoding[:6].upper()}") as error:
        texts(tmp_path / "a.txt")
    advised = re.search(r"iconv -f (\S+) -t utf-8", str(error.value))
    assert advised is not None
    assert (tmp_path / "a.txt").read_bytes().decode(advised[1]).lstrip("\ufeff") == text.lstrip("\ufeff")


def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/none\.txt does not exist\. Check the name\.$"):
        texts(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"none\.txt does not exist"):  # one source, not nine of one letter
        list(documents(str(tmp_path / "none.txt")))
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"unknown ending '\.pdf'.*\.jsonl"):
        texts(tmp_path / "a.pdf")
    with pytest.raises(DataError, match="no file with a known ending"):
        texts(tmp_path)
    with pytest.raises(DataError, match="no input"):
        texts()
    (tmp_path / "a.txt").write_text("one fish")
    monkeypatch.chdir(tmp_path)
    assert texts(".") == ["one fish"]
    with pytest.raises(DataError, match="the name of an input is empty"):
        texts("a.txt", "")
    with pytest.raises(ConfigError, match="Did you mean 'line'"):
        texts(tmp_path, split="lines")


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"t\.parquet is not a whole Parquet file"):
        texts(path)
    pq.write_table(pa.table({"text": pa.array(["a", None]), "n": [1, 2]}), path)
    with pytest.raises(
        DataError, match=r"row 1, column 'text': expected text, got NoneType .*take the row out"
    ):
        texts(path)
    with pytest.raises(DataError, match=r"no column 'txt'.*Did you mean 'text'"):
        texts(path, text_key="txt")
    with pytest.raises(DataError, match=r"row 0, column 'n': expected text, got int"):
        texts(path, text_key="n")
    pq.write_table(pa.table([["a"], ["b"], [1], [2]], ["text", "text", "n", "n"]), path)
    with pytest.raises(DataError, match=r"t\.parquet: 2 columns have the name 'text'"):
        texts(path)
    pq.write_table(pa.table([["a"], [1], [2]], ["text", "n", "n"]), path)
    assert texts(path) == ["a"]
    pq.write_table(pa.table({"text": ["a", "b\0"]}), path)
    with pytest.raises(DataError, match=r"t\.parquet, row 1, column 'text': contains a zero byte"):
        texts(path)
    pq.write_table(pa.table({"text": ["a"] * 1500 + [None]}), path)
    with pytest.raises(DataError, match="row 1500, column 'text'"):
        texts(path)
    raw = pa.array([b"a", b"b \xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": raw}), path)
    with pytest.raises(DataError, match=r"t\.parquet, row 1, column 'text': not UTF-8 text.*at byte 3"):
        texts(path)
    pq.write_table(pa.table({"text": pa.concat_arrays([pa.array(["a"] * 1500), raw])}), path)
    with pytest.raises(DataError, match="row 1501, column 'text': not UTF-8"):
        texts(path)
    pq.write_table(pa.table({"text": ["a"], "name of b": ["b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"name of b", b"name of \xff"))
    with pytest.raises(DataError, match=r"t\.parquet is not a whole Parquet file: .*utf-8"):
        texts(path)


@pytest.mark.parametrize("from_the_start", [False, True])
def test_full_disk_for_what_is_unpacked(
    from_the_start: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet.gz"
    path.write_bytes(gzip.compress(b"x" * 100))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("glomo_dist.data.storage.packed.shutil.copyfileobj", full)
    if from_the_start:
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/none"])
    why = "No usable temporary directory" if from_the_start else "No space left on device"
    with pytest.raises(GlomoError, match=rf"cannot write /.*: {why}.*\. .*TMPDIR"):
        texts(path)


def test_unreadable_file() -> None:
    with public_folder() as folder:
        path = folder / "a.txt"
        path.write_text("secret")
        assert texts(path) == ["secret"]
        with closed(path), pytest.raises(DataError, match=r"a\.txt cannot be read: Permission denied"):
            texts(path)


def test_file_that_disappears_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    (file,) = find_files([f"file://{path}"], TEXT_SUFFIXES)
    with open_seekable(file) as stream:
        assert stream.read() == b"x"
    path.unlink()
    with pytest.raises(DataError, match=rf"file://{path} cannot be read: No such file"):
        open_seekable(file)


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    """In a folder it was opened, and waited for who would write into it; by name it "did not exist"."""
    (tmp_path / "a.txt").write_text("one fish")
    pipe = tmp_path / "b.txt"
    os.mkfifo(pipe)
    for source in (pipe, tmp_path):
        with pytest.raises(DataError, match=rf"{pipe} is a pipe, socket or device, not a file\. Write"):
            find_files([str(source)], TEXT_SUFFIXES)
    with pytest.raises(DataError, match="/dev/null is a pipe, socket or device"):
        find_files(["/dev/null"], TEXT_SUFFIXES)
