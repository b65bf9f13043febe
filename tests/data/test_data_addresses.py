"""Documents at addresses: http, S3, any other that fsspec reads."""

from __future__ import annotations

import functools
import gzip
import http.server
import lzma
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from document_samples import LINES, texts

from glomo_dist.data.preparing.sources import documents
from glomo_dist.runtime.errors import DataError


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_with_the_packing_decided_by_the_ending(web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(LINES))
    pq.write_table(pa.table({"text": ["from a table"]}), folder / "t.parquet")
    assert texts(f"{address}/a.jsonl.xz?token=1") == ["one fish", "two é"]
    assert texts(f"{address}/t.parquet") == ["from a table"]
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        texts(f"{address}/missing.jsonl")


def test_http_without_parts_of_a_file(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = web
    text = "a line of text\n" * 1_500_000  # more than one block of fsspec
    (folder / "a.txt").write_text(text)
    (folder / "a.txt.gz").write_bytes(gzip.compress(text.encode(), 1))
    assert texts(f"{address}/a.txt") == texts(f"{address}/a.txt.gz") == [text[:-1]]


def test_a_star_in_a_query_is_no_pattern(web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "a.txt").write_text("x")
    (folder / "b.txt").write_text("y")
    assert texts(f"{address}/a.txt?sig=a*b") == ["x"]
    assert texts(f"{address}/*.txt") == ["x", "y"]


SECRETS = ["http://me:SECRET@127.0.0.1:9/a.txt", "http://127.0.0.1:9/a.txt?token=SECRET"]


@pytest.mark.parametrize(
    "source", [*SECRETS, *(s.replace("a.txt", "*.txt") for s in SECRETS), "{web}?key=SECRET"]
)
def test_no_error_repeats_a_secret(web: tuple[Path, str], source: str) -> None:
    with pytest.raises(DataError) as error:
        texts(source.format(web=f"{web[1]}/missing.txt"))
    assert "SECRET" not in str(error.value) and ".txt" in str(error.value)


def test_s3_files_folders_and_patterns(bucket: Any) -> None:
    bucket.pipe_file("corpus/sub/a.jsonl.zst", zstandard.compress(LINES))
    bucket.pipe_file("corpus/b.txt", b"plain")
    assert texts("s3://corpus/sub/a.jsonl.zst") == ["one fish", "two é"]
    assert texts("s3://corpus") == ["plain", "one fish", "two é"]
    assert texts("s3://corpus/s*/*.jsonl.zst") == ["one fish", "two é"]
    assert [d.source for d in documents(["s3://corpus"])] == ["b.txt", "sub/a.jsonl.zst", "sub/a.jsonl.zst"]


def test_s3_table_larger_than_one_block(bucket: Any, tmp_path: Path) -> None:
    rows = [f"{i} " + "x" * 4000 for i in range(4000)]  # 16 MB, read in several requests
    pq.write_table(pa.table({"text": rows}), tmp_path / "t.parquet", compression=None, use_dictionary=False)
    bucket.put_file(str(tmp_path / "t.parquet"), "corpus/table/t.parquet")
    assert texts("s3://corpus/table/t.parquet") == rows


@pytest.mark.parametrize("source", ["s3://corpus/missing.txt", "s3://no-such-bucket/a.txt"])
def test_what_s3_does_not_have_is_named(bucket: Any, source: str) -> None:
    with pytest.raises(DataError, match=source):
        texts(source)


def test_s3_without_a_server(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        with pytest.raises(DataError, match=r"s3://corpus/b\.txt.*connect"):
            texts("s3://corpus/b.txt")
    finally:
        fsspec.filesystem("s3").clear_instance_cache()


def test_any_fsspec_place_is_read() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/corpus/a.jsonl.gz", gzip.compress(LINES))
    assert texts("memory://corpus/a.jsonl.gz") == ["one fish", "two é"]
    assert texts("memory://corpus") == ["one fish", "two é"]
    with pytest.raises(DataError, match="nowhere"):
        texts("memory://nowhere/a.jsonl")
    with pytest.raises(DataError, match=r"gopher.*known|known.*gopher|Protocol"):
        texts("gopher://a/b.txt")


def test_archives_may_have_files_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not the same file, and which one is meant is said."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        with zipfile.ZipFile(f"{name}.zip", "w") as archive:
            archive.writestr("sub/a.txt", name)
    assert texts("zip://sub/a.txt::one.zip", "zip://sub/a.txt::two.zip") == ["one", "two"]
    assert texts("zip://::one.zip", "zip://s*/*.txt::two.zip") == ["one", "two"]
    for source in ("zip://sub/a.txt::one.zip", "zip://sub::one.zip", "zip://sub/*::one.zip"):
        with pytest.raises(DataError, match=r"zip://sub/a\.txt::one\.zip is named twice"):
            texts("zip://::one.zip", source)


def test_what_is_not_in_an_archive_whose_name_has_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an address with a token has: `zip://a.txt::https://host/all.zip?token=1`."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("all?.zip", "w") as archive:
        archive.writestr("sub/a.txt", "one")
    assert texts("zip://s*/a.txt::all?.zip") == ["one"]
    with pytest.raises(DataError, match=r"zip://a\.txt::all\?\.zip does not exist\. Check"):
        texts("zip://a.txt::all?.zip")
