"""Input at an address whose connection breaks: the bytes of an undisturbed reading, or an error in the end."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import web_faults as faults
from document_samples import PACK
from unbroken_samples import NAME, lines, prepared
from web_faults import Fault, Server

from glomo_dist.data.preparing.sources import documents
from glomo_dist.data.storage.remote import Unbroken
from glomo_dist.runtime.errors import DataError

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / NAME).write_bytes(lines())
    return prepared(folder / NAME, folder / "out")


PASSING: dict[str, list[Fault]] = {
    "cut": [faults.cut_after(100_000), faults.cut_after(50_000)],
    "reset": [faults.reset_after(100_000), faults.reset_after(50_000)],
    "stalled": [faults.stall_after(100_000)],
    "hung up": [faults.hang_up] * 3,
    "in trouble": [faults.code(503), faults.code(500), faults.code(502), faults.code(504), faults.code(429)],
    "in trouble later": [
        faults.cut_after(100_000),
        faults.code(503),
        faults.code(429),
        faults.cut_after(1000),
    ],
    "smaller parts": [faults.cut_after(100_000), faults.small_part, faults.small_part],
    "part refused": [faults.cut_after(100_000), faults.code(416)],
    "packed": [faults.packed(20_000), faults.packed()],
    "often": [faults.cut_after(10_000)] * 12,
}
# without them no try comes further than the one before
NEED_PARTS = ("smaller parts", "part refused", "often")


@pytest.mark.parametrize(
    ("case", "parts"),
    [(case, parts) for case in PASSING for parts in (True, False) if parts or case not in NEED_PARTS],
)
def test_prepare_gives_the_shards_of_an_undisturbed_reading(
    web: Server, tmp_path: Path, case: str, parts: bool, undisturbed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    web.parts, web.signs = parts, True
    web.faults[NAME] = list(PASSING[case])
    assert prepared(f"{web.address}/{NAME}?token=SECRET", tmp_path / "out") == undisturbed
    assert not web.faults[NAME], "the test's own check: every fault was met"
    said = capfd.readouterr().err
    assert re.search(rf"{web.address}/{NAME}: .*, trying again in 0\.01 s \(1 of 5\)", said)
    assert "SECRET" not in said
    if case in ("cut", "reset", "stalled"):
        assert (
            "bytes=100000-" in web.ranges and "after 100,000 bytes, trying again in 0.01 s (1 of 5)" in said
        )
        assert ("no answer in time" if case == "stalled" else "connection lost") in said


@pytest.mark.parametrize("name", ["table.parquet", "corpus.jsonl.gz", "corpus.jsonl.xz", "corpus.jsonl.zst"])
def test_tables_and_packed_files(web: Server, name: str) -> None:
    path = web.folder / name
    rows = [json.loads(line) for line in lines().splitlines()]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(PACK[path.suffix](lines()))
    web.faults[name] = [faults.cut_after(30_000), faults.cut_after(500)]
    assert [d.text for d in documents([f"{web.address}/{name}"])] == [row["text"] for row in rows]
    assert web.asked[name] == 3 and web.ranges[0] == "bytes=30000-"


def test_a_file_in_an_archive_at_an_address(web: Server) -> None:
    with zipfile.ZipFile(web.folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(web.folder / NAME, NAME)
    source = f"zip://{NAME}::{web.address}/all.zip"
    expected = [d.text for d in documents([web.folder / NAME])]
    assert [d.text for d in documents([source])] == expected
    plain = web.asked["all.zip"]
    for at in range(1, plain):  # the first is for the size, which fsspec asks for in two ways
        for fault in (faults.code(503), faults.cut_after(10)):
            web.faults["all.zip"] = [faults.send] * at + [fault]
            assert [d.text for d in documents([source])] == expected
            assert not web.faults["all.zip"]


def test_the_cut_copy_of_a_cache_is_not_taken_for_the_whole(web: Server) -> None:
    (web.folder / "a.txt").write_bytes(lines())
    web.always["a.txt"] = faults.cut_after(100_000)
    with pytest.raises(DataError, match=r"a\.txt cannot be read: ClientPayloadError"):
        list(documents([f"simplecache::{web.address}/a.txt"]))


CHANGES = {"other bytes": lines()[::-1], "shorter": lines()[: 50 * 200], "longer": lines() + lines(2)}


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_two_versions_are_not_mixed(web: Server, tmp_path: Path, change: str, parts: bool) -> None:
    web.parts, web.signs = parts, change == "other bytes"
    web.faults[NAME] = [faults.cut_after(100_000), faults.replaced(CHANGES[change])]
    with pytest.raises(DataError, match=rf"{web.address}/{NAME} changed while it was read") as error:
        prepared(f"{web.address}/{NAME}", tmp_path / "out")
    assert ("etag" in str(error.value)) == (change == "other bytes") and web.asked[NAME] <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["web"], "nothing is left behind"


def test_packed_and_plain_bytes_are_not_mixed(web: Server) -> None:
    web.faults[NAME] = [faults.cut_after(20_000), faults.packed()]
    with pytest.raises(DataError, match=rf"{NAME} changed while it was read \(packing identity, now gzip\)"):
        list(documents([f"{web.address}/{NAME}"]))


class Store:
    """A file system with parts of a file, as fsspec's of S3: reading breaks at every multiple of `every` once."""

    protocol = "store"

    def __init__(self, content: bytes, every: int) -> None:
        self.content, self.breaks, self.details = content, set(range(0, len(content), every)), {"ETag": "1"}

    def open(self, path: str, mode: str, **options: Any) -> _Stored:
        return _Stored(self)


class _Stored:
    def __init__(self, store: Store) -> None:
        self.store, self.at, self.details = store, 0, store.details

    def seek(self, at: int) -> None:
        self.at = at

    def read(self, size: int) -> bytes:
        if self.at in self.store.breaks:
            self.store.breaks.remove(self.at)
            raise ConnectionResetError("reset by peer")
        block = self.store.content[self.at : self.at + min(size, 1000)]
        self.at += len(block)
        return block

    def close(self) -> None:
        pass


def test_other_stores_go_on_where_they_were() -> None:
    store = Store(lines(), 5000)
    file = Unbroken(store, "a", "store://a")
    blocks = [file.read(70_000) for _ in range(100)]
    assert not {at for at in store.breaks if at < 100_000} and b"".join(blocks) == lines()[:100_000]
    store.details = {"ETag": "2"}
    with pytest.raises(DataError, match="store://a changed while it was read"):
        for _ in range(100):
            file.read(70_000)
