"""Reading documents: formats, packing, places, and every way they can be bad."""

from __future__ import annotations

import errno
import gzip
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_samples import LINES, PACK, texts

from glomo_dist.data.files import find_files, open_seekable
from glomo_dist.data.sources import TEXT_SUFFIXES, WORDLESS, Document, documents
from glomo_dist.data.spool import number_words
from glomo_dist.data.text import tokenize
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError


@pytest.mark.parametrize("packing", PACK)
def test_json_lines_in_every_packing(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](LINES))
    found = list(documents([str(path)]))
    assert [(d.text, d.source, d.row) for d in found] == [
        ("one fish", path.name, 1),
        ("two é", path.name, 3),
    ]


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


@pytest.mark.parametrize("packing", PACK)
def test_parquet_in_every_packing(tmp_path: Path, packing: str) -> None:
    pq.write_table(pa.table({"body": ["a b", "", "c"], "n": [1, 2, 3]}), tmp_path / "t")
    path = tmp_path / f"t.parquet{packing}"
    path.write_bytes(PACK[packing]((tmp_path / "t").read_bytes()))
    found = list(documents([str(path)], text_key="body"))
    assert [(d.text, d.row) for d in found] == [("a b", 0), ("c", 2)]
    assert [list(d.words()) for d in found] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    "split, expected",
    [
        ("file", ["first line\nsecond\n\n\nthird"]),
        ("paragraph", ["first line\nsecond", "third"]),
        ("line", ["first line", "second", "third"]),
    ],
)
def test_plain_text_by_file_paragraph_or_line(tmp_path: Path, split: str, expected: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst line\r\nsecond\r\n\r\n\r\nthird")
    assert texts(path, split=split) == expected


def test_tokenised_text_is_cut_at_articles_and_not_tokenised_again(tmp_path: Path) -> None:
    path = tmp_path / "wiki.tokens"
    path.write_text(" \n = A b = \n \n Well @-@ known <unk> \n = = Part = = \n x \n \n = C = \n \n do n't \n")
    found = list(documents([str(path)]))
    assert [list(d.words()) for d in found] == [
        ["=", "a", "b", "=", "well", "-", "known", "<unk>", "=", "=", "part", "=", "=", "x"],
        ["=", "c", "=", "do", "n't"],
    ]
    path.write_text("cafe\u0301")
    assert list(next(documents([str(path)])).words()) == ["café"]


def test_words_do_not_depend_on_where_a_long_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Don't ΟΔΟΣ\u2028ΟΔΟΣ.\x85 ΑΣ Σ\n’tis @-@ “x”–y\tÜber İ  1.5 e\u0301 \u0301x e\n\u0301\r\nend" * 3
    whole = [Document(text, "", 0, tokenised) for tokenised in (False, True)]
    expected = [list(document.words()) for document in whole]
    assert expected[0] == tokenize(text)
    for size in range(1, 30):
        monkeypatch.setattr("glomo_dist.data.sources._PIECE", size)
        assert [list(document.words()) for document in whole] == expected


def test_memory_of_a_long_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glomo_dist.data.sources._PIECE", 1 << 16)
    text = "some words of it\n" * 200_000
    (tmp_path / "a.txt").write_text(text)
    tracemalloc.start()
    numbered = number_words((list(documents([str(tmp_path)])), 0.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbered.lengths.tolist() == [800_000] and peak < 5 * len(text)


@pytest.mark.parametrize("split, rows", [("file", [1]), ("paragraph", [1, 5]), ("line", [1, 2, 5, 6])])
def test_lines_end_as_they_did_on_any_machine(tmp_path: Path, split: str, rows: list[int]) -> None:
    lines = ["a", "b", "", "", "c", "d"]
    for end in ("\n", "\r", "\r\n"):
        (tmp_path / "a.txt").write_bytes(end.join(lines).encode())
        found = list(documents([str(tmp_path)], split=split))
        assert [d.row for d in found] == rows
        assert "\n".join(d.text for d in found).split() == ["a", "b", "c", "d"]
    (tmp_path / "a.txt").write_bytes(b"a\rb\nc\r\nd")
    assert texts(tmp_path, split="line") == ["a", "b", "c", "d"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.json", "sub/b.json", "c.txt.bz2", "README", ".hidden", "d.json.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "good.txt").write_text("a\n\n\nb\n")
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n{"text": " "}\n\n{"text": ""}\n')
    left_out: Counter[str] = Counter()
    found = list(documents([str(tmp_path)], split="line", left_out=left_out))
    assert [d.text for d in found] == ["a", "a", "b"]
    assert left_out == {
        ".json files": 2, ".bz2 files": 1, ".json.gz files": 1, "files without an ending": 1, WORDLESS: 2,
    }  # fmt: skip


def test_an_empty_file_is_left_out_unless_it_was_named_outright(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.txt").write_text(" \n\n")
    (tmp_path / "d.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    for source in (tmp_path, tmp_path / "*.*"):
        for split in ("file", "paragraph", "line"):
            left_out: Counter[str] = Counter()
            assert texts(source, split=split, left_out=left_out) == ["words"]
            assert left_out == {WORDLESS: 4}
    for name in ("b.txt", "c.txt", "d.jsonl"):
        with pytest.raises(DataError, match=rf"{name} has no text in it"):
            texts(tmp_path / name)


def test_a_name_that_looks_like_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a::b.txt", "zip://c::d.txt", "e[1]*.txt", "f?g=h.txt"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zip:").mkdir()
    for name in names:
        Path(name).write_text(name)
        assert texts(name) == texts(tmp_path / name) == [name]
    assert sorted(texts(".")) == sorted(names)
    Path("http").mkdir()
    Path("http/i.txt").write_text("no address")
    assert texts("http") == ["no address"]


def test_folder_and_glob_are_searched_in_order_and_hidden_files_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.txt", "sub/c.jsonl.gz", ".hidden.txt", "note.pdf"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(LINES) if name.endswith(".gz") else name.encode())
    assert texts(tmp_path) == ["b.txt", "sub/a.txt", "one fish", "two é"]
    assert [d.source for d in documents([str(tmp_path)])][:2] == ["b.txt", "sub/a.txt"]
    assert texts(f"{tmp_path}/s*/*.txt") == ["sub/a.txt"]
    with pytest.raises(DataError, match="named twice"):
        texts(tmp_path, tmp_path / "b.txt")
    (tmp_path / "sub" / "link.txt").symlink_to(tmp_path / "b.txt")
    for other in ("./b.txt", "/b.txt", "sub/../b.txt", "sub/link.txt"):
        with pytest.raises(DataError, match=r"named twice .*same file as"):
            texts(tmp_path / "b.txt", f"{tmp_path}/{other}")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in ("in/b/1.txt", "in/.store/2.txt", "else/where/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    folder = tmp_path / "in"
    (folder / "a").symlink_to(folder / "b")  # the folder itself comes first, so this is left out
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "c").symlink_to(folder / ".store")
    (folder / "d").symlink_to(tmp_path / "else")
    (tmp_path / "else" / "back").symlink_to(folder / "d")
    found = [d.source for d in documents([str(folder)])]
    assert found == ["b/1.txt", "c/2.txt", "d/where/3.txt"]


def test_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/lat\xe9.txt")).write_text("x")
    (document,) = documents([str(tmp_path)])
    assert document.source == "lat\ufffd.txt"


def test_byte_order_marks_of_joined_files_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfone\n") + gzip.compress(b"\xef\xbb\xbftwo\n"))
    assert texts(path) == ["one\ntwo"]


BAD_LINES = {
    "not JSON": (b'{"text": "a"}\n{"text": \n', r"line 2: not valid JSON"),
    "not an object": (b'{"text": "a"}\n[1]\n', r"line 2: expected a JSON object, got list"),
    "no such key": (
        b'{"txt": "a"}\n',
        r"line 1: no key 'text'; set text_key \(--text-key\).*Did you mean 'txt'",
    ),
    "not text": (b'{"text": "a"}\n{"text": 5}\n', r"line 2, key 'text': expected text, got int"),
    "null": (b'{"text": null}\n', r"line 1, key 'text': expected text, got NoneType"),
    "latin 1": ('{"text": "a"}\n{"text": "é"}\n'.encode("latin1"), r"line 2, byte 11 .*0xe9.*not UTF-8"),
    "utf 16": ('{"text": "a"}\n'.encode("utf-16-le"), r"line 1: contains a zero byte"),
    "utf 16 with its mark": (
        '{"text": "a"}\n'.encode("utf-16"),
        r"jsonl: UTF-16 text.*iconv -f utf-16 -t utf-8",
    ),
    "utf 16, high byte first": ("\ufeffa\n".encode("utf-16-be"), r"jsonl: UTF-16 text.*iconv -f utf-16 -t"),
    "zero byte": (b'{"text": "a"}\n{"text": "b\\u0000"}\n', r"line 2, key 'text': contains a zero byte"),
    "deep": (b"[" * 100_000 + b"\n", r"line 1: .*Mend or delete"),
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


def test_half_a_surrogate_pair_becomes_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "x \ud83d y \ud83d\ude00"}')
    assert texts(path) == ["x � y 😀"]


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
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
    raw = pa.array([b"a", b"b \xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": raw}), path)
    with pytest.raises(DataError, match=r"t\.parquet, row 1, column 'text': not UTF-8 text.*at byte 3"):
        texts(path)


@pytest.mark.parametrize("from_the_start", [False, True])
def test_full_disk_for_what_is_unpacked(
    from_the_start: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet.gz"
    path.write_bytes(gzip.compress(b"x" * 100))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("glomo_dist.data.files.shutil.copyfileobj", full)
    if from_the_start:
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/none"])
    why = "No usable temporary directory" if from_the_start else "No space left on device"
    with pytest.raises(GlomoError, match=rf"cannot write /.*: {why}.*\. .*TMPDIR"):
        texts(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("secret")
    path.chmod(0)
    with pytest.raises(DataError, match=r"a\.txt cannot be read: Permission denied"):
        texts(path)


def test_file_that_disappears_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    (file,) = find_files([str(path)], TEXT_SUFFIXES)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.txt cannot be read: No such file"):
        open_seekable(file)
