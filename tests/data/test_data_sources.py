"""Reading documents: formats, packing, places, and what is left out."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_samples import LINES, PACK, texts

from glomo_dist.data.preparing.sources import WORDLESS, Document, documents
from glomo_dist.data.preparing.spool import number_words
from glomo_dist.data.tokenizers.text import tokenize
from glomo_dist.runtime.errors import DataError


@pytest.mark.parametrize("packing", PACK)
def test_json_lines_in_every_packing(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](LINES))
    found = list(documents([str(path)]))
    assert [(d.text, d.source, d.row) for d in found] == [
        ("one fish", path.name, 1),
        ("two é", path.name, 3),
    ]


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
    left_out: Counter[str] = Counter()
    found = list(documents([str(path)], left_out=left_out))
    assert [d.row for d in found] == [1, 8] and not left_out, "the blank line before a heading is no document"
    assert [list(d.words()) for d in found] == [
        ["=", "a", "b", "=", "well", "-", "known", "<unk>", "=", "=", "part", "=", "=", "x"],
        ["=", "c", "=", "do", "n't"],
    ]
    path.write_text("cafe\u0301")
    assert list(next(documents([str(path)])).words()) == ["café"]


@pytest.mark.parametrize(("split", "expected"), [("line", ["P/Q r:1", "s"]), ("paragraph", ["P/Q r:1\ns"])])
def test_units_that_are_cut_already_by_line_or_paragraph(
    tmp_path: Path, split: str, expected: list[str]
) -> None:
    path = tmp_path / "events.tokens"
    path.write_text("P/Q r:1\ns\n")
    found = list(documents([str(path)], split=split))
    assert [d.text for d in found] == expected
    assert [word for d in found for word in d.words()] == ["p/q", "r:1", "s"]


def test_a_list_in_the_place_of_a_text_says_where_units_go(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"text": ["a"' + ', "b"' * 1000 + "]}")
    with pytest.raises(
        DataError, match=r"line 1, key 'text': expected text, got list \(.{,44}\)\. .* into a \.tokens file"
    ):
        list(documents([str(path)]))


def test_words_do_not_depend_on_where_a_long_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Don't ΟΔΟΣ\u2028ΟΔΟΣ.\x85 ΑΣ Σ\n’tis @-@ “x”–y\tÜber İ  1.5 e\u0301 \u0301x e\n\u0301\r\nend" * 3
    whole = [Document(text, "", 0, tokenised) for tokenised in (False, True)]
    expected = [list(document.words()) for document in whole]
    assert expected[0] == tokenize(text)
    for size in range(1, 30):
        monkeypatch.setattr("glomo_dist.data.preparing.sources._PIECE", size)
        assert [list(document.words()) for document in whole] == expected


def test_memory_of_a_long_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glomo_dist.data.preparing.sources._PIECE", 1 << 16)
    text = "some words of it\n" * 200_000
    (tmp_path / "a.txt").write_text(text)
    tracemalloc.start()
    numbered = number_words(list(documents([str(tmp_path)])), 0.0)
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


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_articles_are_found_whatever_ends_a_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "wiki.tokens"
    path.write_bytes(end.join(["= A =", "a", "= B =", "b"]).encode())
    assert [(d.text, d.row) for d in documents([str(path)])] == [("= A =\na", 1), ("= B =\nb", 3)]


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
    by_pattern: Counter[str] = Counter()  # the folder itself is no file that is left out
    assert list(documents([f"{tmp_path}/*"], split="line", left_out=by_pattern)) == found
    assert by_pattern == {**left_out, ".json files": 1}


def test_an_empty_file_is_left_out_unless_it_was_named_outright(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    for name in ("b.txt", "e.txt.gz", "f.txt.xz", "g.txt.zst"):
        (tmp_path / name).touch()
    (tmp_path / "c.txt").write_text(" \n\n")
    (tmp_path / "d.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    for source in (tmp_path, tmp_path / "*.*"):
        for split in ("file", "paragraph", "line"):
            left_out: Counter[str] = Counter()
            assert texts(source, split=split, left_out=left_out) == ["words"]
            assert left_out == {WORDLESS: 7}
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
    hidden = (".hidden.txt", "sub/.hidden.txt", ".cache/d.txt")
    for name in ("b.txt", "sub/a.txt", "sub/c.jsonl.gz", "note.pdf", *hidden):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(LINES) if name.endswith(".gz") else name.encode())
    assert texts(tmp_path) == ["b.txt", "sub/a.txt", "one fish", "two é"]
    assert [d.source for d in documents([str(tmp_path)])][:2] == ["b.txt", "sub/a.txt"]
    for source in (f"{tmp_path}//", f"{tmp_path}/s?b/*", f"{tmp_path}/[s]ub/a.txt", f"{tmp_path}/**"):
        assert "sub/a.txt" in [d.source for d in documents([source])]
    assert texts(f"{tmp_path}/s*/*.txt") == ["sub/a.txt"]
    assert texts(tmp_path / ".cache") == texts(f"{tmp_path}/.cache/*") == [".cache/d.txt"]
    assert [d.text for d in documents(tmp_path.glob("b.*"))] == ["b.txt"]  # which can be asked but once
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


def test_a_link_to_a_file_of_the_same_folder_is_left_out(tmp_path: Path) -> None:
    """Its documents would count double. One to what is not read itself is read as what it is called."""
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "c.data"):
        (tmp_path / "sub" / name).write_text(name)
    for link, to in (("a", "b.txt"), ("d", "b.txt"), ("e", "c.data"), ("f", "c.data")):
        (tmp_path / f"{link}.txt").symlink_to(tmp_path / "sub" / to)
    for source in (tmp_path, tmp_path / "**"):
        left_out: Counter[str] = Counter()
        found = [(d.source, d.text) for d in documents([source], left_out=left_out)]
        assert found == [("e.txt", "c.data"), ("sub/b.txt", "b.txt")]
        assert left_out == {".data files": 1, "links to files that are read already": 3}
    with pytest.raises(DataError, match=r"a\.txt is named twice"):
        texts(tmp_path, tmp_path / "a.txt")
    (tmp_path / "nothing.txt").symlink_to(tmp_path / "gone")
    assert texts(tmp_path / "*.txt") == texts(tmp_path / "[ae].txt"), "a pattern finds what is there"


def test_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/lat\xe9.txt")).write_text("x")
    (document,) = documents([str(tmp_path)])
    assert document.source == "lat\ufffd.txt"


def test_byte_order_marks_of_joined_files_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfone\n") + gzip.compress(b"\xef\xbb\xbftwo\n"))
    assert texts(path) == ["one\ntwo"]


def test_half_a_surrogate_pair_becomes_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "x \ud83d y \ud83d\ude00 \ude00 \ud7ff\ud800 \udfff\ue000"}')
    assert texts(path) == ["x � y 😀 � \ud7ff� �\ue000"]


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"info": null}',
        b'{"info": {"features": ["text"]}}',
        b'{"info": {"features": {"text": {"_type": "ClassLabel", "names": {"a": "b"}}}}}',
    ],
)
def test_metadata_of_parquet_that_name_no_classes_are_passed_over(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"text": ["one"]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["one"]
