"""Input at an address whose connection breaks: the bytes of an undisturbed reading, or an error in the end."""

from __future__ import annotations

import json
import random
import re
import ssl
import time
import zipfile
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import web_faults as faults
from multidict import CIMultiDict
from web_faults import Fault, Server, serving

from glomo_dist.data import ShardIndex, patience, prepare_text, remote
from glomo_dist.data.patience import insist
from glomo_dist.data.places import Address, read_place
from glomo_dist.data.remote import Unbroken
from glomo_dist.data.sources import documents
from glomo_dist.runtime.errors import DataError

NAME = "corpus.jsonl"
WORDS = [f"w{i}" for i in range(500)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "STALL", 0.5)
    monkeypatch.setattr(patience, "WAITS", (0.01, 0.02, 0.03, 0.04, 0.05))
    monkeypatch.setattr(patience, "_reached", set())


def lines(seed: int = 1, rows: int = 1000) -> bytes:
    """About 200 kB."""
    draw = random.Random(seed)
    return b"".join(
        json.dumps({"text": " ".join(draw.choices(WORDS, k=40))}).encode() + b"\n" for _ in range(rows)
    )


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / NAME).write_bytes(lines())
    with serving(folder) as server:
        server.parts = True
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / NAME).write_bytes(lines())
    return prepared(folder / NAME, folder / "out")


def prepared(source: str | Path, out: Path) -> str:
    return ShardIndex.read(prepare_text([str(source)], out, min_count=1)).fingerprint


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


NEED_PARTS = (
    "smaller parts",
    "part refused",
    "often",
)  # without them no try comes further than the one before


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
        from document_samples import PACK

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
            web.faults["all.zip"] = [lambda h, c: faults.send(h, c)] * at + [fault]
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


FINAL = {"404": "does not exist", **{n: f"cannot be read: .*{n}" for n in ("403", "401", "410")}}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("number", FINAL)
def test_what_is_final_is_not_tried_again(web: Server, tmp_path: Path, number: str, later: bool) -> None:
    web.faults[NAME] = [faults.cut_after(100_000)] * later
    web.always[NAME] = faults.code(int(number))
    with pytest.raises(DataError, match=rf"{web.address}/{NAME} {FINAL[number]}"):
        prepared(f"{web.address}/{NAME}", tmp_path / "out")
    assert web.asked[NAME] == 1 + later


@pytest.mark.parametrize("host", ["127.0.0.1:9", "nowhere.invalid"])
def test_a_host_that_never_answered_is_not_waited_for(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=rf"http://{host}/a\.txt cannot be read: .*Check the file"):
        list(documents([f"http://{host}/a.txt"]))
    assert "again" not in capfd.readouterr().err


def test_a_host_that_answered_is_waited_for(web: Server, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(documents([f"{web.address}/{NAME}"]))
    web.shutdown()
    web.server_close()
    with pytest.raises(
        DataError, match=r"b\.txt cannot be read: .*[Cc]onnect.*\(6 tries\)\. Try again later"
    ):
        list(documents([f"{web.address}/b.txt"]))
    assert capfd.readouterr().err.count("trying again") == 5


def test_a_bad_certificate_is_final() -> None:
    tried = []

    def attempt() -> None:
        tried.append(1)
        raise aiohttp.ClientConnectorCertificateError(None, ssl.CertificateError("self-signed"))  # type: ignore[arg-type]

    insist(lambda: None, "https://host/b")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        insist(attempt, "https://host/a")
    assert len(tried) == 1


def test_a_server_that_asks_for_time_gets_it(web: Server, capfd: pytest.CaptureFixture[str]) -> None:
    web.faults[NAME] = [faults.code(429, retry_after="1")]
    began = time.monotonic()
    rows = list(documents([f"{web.address}/{NAME}"]))
    assert len(rows) == 1000 and time.monotonic() - began >= 1.0
    assert "the server answers 429, trying again in 1 s (1 of 5)" in capfd.readouterr().err
    web.faults[NAME] = [faults.code(503, retry_after="1")]
    began = time.monotonic()
    assert read_place(Address(f"{web.address}/{NAME}"), 10.0) == (web.folder / NAME).read_bytes()
    assert time.monotonic() - began >= 1.0


def asking(header: str) -> float:
    refused = OSError("429")
    refused.headers = CIMultiDict({"retry-after": header})  # type: ignore[attr-defined]
    return patience.asked_to_wait(refused)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7), (" 30 ", 30), ("86400", 300), ("0", 0), ("-5", 0), ("1.5", 0), ("", 0), ("soon", 0), ("9" * 400, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 99 Oct 2015", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 300),
    ],
)  # fmt: skip
def test_how_long_a_server_may_ask_for(header: str, seconds: float) -> None:
    assert asking(header) == seconds


def test_a_server_may_name_the_time_when() -> None:
    assert patience.asked_to_wait(OSError("no headers")) == 0
    assert 150 < asking(formatdate(time.time() + 250, usegmt=True)) <= 250
    assert asking(formatdate(time.time() + 600, usegmt=True)) == 300


@pytest.mark.parametrize("name", ["server_error", "cut"])
def test_what_does_not_pass_is_an_error_that_says_how_often(
    web: Server, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    web.faults[NAME] = [faults.cut_after(100_000)]
    web.always[NAME] = faults.server_error if name == "server_error" else faults.cut_after(0)
    what = "503" if name == "server_error" else "payload"
    with pytest.raises(
        DataError, match=rf"{web.address}/{NAME} cannot be read: .*{what}.*\(6 tries after 100,000 bytes\)"
    ):
        prepared(f"{web.address}/{NAME}", tmp_path / "out")
    assert web.asked[NAME] == 6 and capfd.readouterr().err.count("trying again") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["web"], "nothing is left behind"


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
