"""Shards over HTTP and S3: the batches of the disk, whatever goes wrong for a while; and what stays wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import web_faults as faults
from shard_samples import MakeShards
from web_faults import Fault, Server, serving

from glomo_dist.data import BadShard, Reading, ShardIndex, Stream
from glomo_dist.data.storage import places, remote
from glomo_dist.runtime.errors import DataError, ShardError

LENGTHS = [30, 4, 90, 2, 61, 7] * 6
SHARD = "shard-00001.tar"


@pytest.fixture
def local(make_shards: MakeShards) -> ShardIndex:
    return make_shards(LENGTHS, 16_384)


@pytest.fixture
def web(local: ShardIndex) -> Iterator[Server]:
    with serving(Path(str(local.folder))) as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "STALL", 0.5)
    monkeypatch.setattr(places, "_FIRST_WAIT", 0.02)


def stream(index: ShardIndex, folder: Path, **reading: Any) -> Stream:
    options = Reading(**{"readers": 0, "cache": str(folder / "cache"), "retry_seconds": 5.0, **reading})
    return Stream(index, window=16, seed=1, global_batch=4, reading=options)


def epoch(s: Stream) -> list[list[list[int]]]:
    batches = s.iterate()
    found = [next(batches).tokens.tolist() for _ in range(s.order.per_epoch // 4 + 1)]
    batches.close()
    return found


@pytest.mark.parametrize("readers", [0, 2])
def test_http_gives_the_batches_of_the_disk(
    local: ShardIndex, web: Server, tmp_path: Path, readers: int
) -> None:
    remote = ShardIndex.read(f"{web.address}?token=x")
    assert remote.fingerprint == local.fingerprint
    s = stream(remote, tmp_path, readers=readers)
    assert epoch(s) == epoch(stream(local, tmp_path / "other"))
    once = dict(web.asked)
    assert epoch(s) == epoch(stream(local, tmp_path / "other"))
    assert web.asked == once and once[SHARD] == 1, "every shard is fetched once, by whichever reader"


PASSING = ("server_error", "cut_body", "cut_without_saying", "wrong_bytes", "too_long", "html", "redirect", "stall",
           "hang_up")  # fmt: skip
# aiohttp asks once more by itself where a connection was closed before an answer


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(
    local: ShardIndex, web: Server, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fault: Fault = getattr(faults, name)
    web.faults[SHARD] = [fault, fault]
    assert epoch(stream(ShardIndex.read(web.address), tmp_path)) == epoch(stream(local, tmp_path / "other"))
    said = capfd.readouterr().err
    if name == "redirect":  # no fault: it is followed
        assert web.asked[SHARD] == 1 and web.asked[f"moved/{SHARD}"] == 1
    else:
        assert (
            web.asked[SHARD] == 3
            and said.count("again in") == (1 if name == "hang_up" else 2)
            and f"{web.address}/{SHARD}" in said
        )


STAYING = {
    "server_error": "503", "cut_without_saying": "it was cut", "wrong_bytes": "SHA-256|damaged", "html": "DOCTYPE",
    "stall": "cannot be read", "trickle": r"not complete in the time given.*\(1 s\)", "hang_up": "cannot be read",
    "redirect_to_file": "cannot be read",
}  # fmt: skip


@pytest.mark.parametrize("name", STAYING)
def test_what_stays_is_an_error_in_time(web: Server, tmp_path: Path, name: str) -> None:
    web.always[SHARD] = getattr(faults, name)
    began = time.monotonic()
    with pytest.raises(BadShard, match=rf"{web.address}/{SHARD}.*({STAYING[name]})") as error:
        epoch(stream(ShardIndex.read(web.address), tmp_path, retry_seconds=1.0))
    assert time.monotonic() - began < 4.0 and error.value.shard == 1


def test_the_last_attempt_cut_short_does_not_hide_what_is_wrong() -> None:
    tried = []

    def attempt(until: float) -> None:
        tried.append(until)
        if len(tried) < 3:
            raise ShardError("wrong bytes")
        time.sleep(max(0.0, until - time.monotonic()) + 0.01)
        places.in_time(until)

    with pytest.raises(ShardError, match=r"wrong bytes \(3 attempts in 0\.5 s\)"):
        places.attempts(attempt, places.Address("http://host/a.tar"), 0.5)


@pytest.mark.parametrize("kind", [PermissionError, IsADirectoryError, ImportError, DataError])
def test_what_no_attempt_can_mend(kind: type[Exception]) -> None:
    tried = []

    def attempt(until: float) -> None:
        tried.append(until)
        raise kind("of no use")

    with pytest.raises(DataError, match="of no use"):
        places.attempts(attempt, places.Address("gs://bucket/a.tar"), 0.5)
    assert len(tried) == 1


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "gcs", "abfs", "az", "memory"])
def test_stores_that_have_addresses(scheme: str) -> None:
    assert places.place(f"{scheme}://bucket/shards") == places.Address(f"{scheme}://bucket/shards")


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = [places.exists(tmp_path / name) for name in ("file", "none", "file/index.json")]
    assert found == [True, False, False]


@pytest.mark.parametrize("name", ["missing", "no_permission"])
def test_what_is_final_is_not_tried_again(web: Server, tmp_path: Path, name: str) -> None:
    index = ShardIndex.read(web.address)
    if name == "missing":
        (web.folder / SHARD).unlink()
    else:
        web.always[SHARD] = faults.no_permission
    with pytest.raises(BadShard, match=SHARD):
        epoch(stream(index, tmp_path))
    assert web.asked[SHARD] == 1


def test_an_index_that_is_none(web: Server, local: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glomo_dist.data.shards.index._RETRY_SECONDS", 0.3)
    web.faults["index.json"] = [faults.server_error]
    assert ShardIndex.read(web.address).fingerprint == local.fingerprint
    web.faults["tokenizer.json"] = [faults.cut_body]
    assert ShardIndex.read(web.address).load_tokenizer().fingerprint == local.tokenizer
    for fault, message in {
        faults.html: "not valid JSON", faults.cut_without_saying: "not valid JSON",
        faults.server_error: "503", faults.no_permission: "403", faults.trickle: "not complete in the time given",
    }.items():  # fmt: skip
        web.always["index.json"] = fault
        with pytest.raises(ShardError, match=rf"{web.address}/index\.json.*{message}"):
            ShardIndex.read(web.address)
    with pytest.raises(ShardError, match=r"nowhere/index\.json does not exist"):
        ShardIndex.read(f"{web.address}/nowhere")


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glomo_dist.data.shards.index._RETRY_SECONDS", 0.3)
    with pytest.raises(ShardError, match=r"127\.0\.0\.1:9/index\.json.*[Cc]onnect"):
        ShardIndex.read("http://127.0.0.1:9")


def test_s3(local: ShardIndex, bucket: Any, tmp_path: Path) -> None:
    bucket.put(str(local.folder), "corpus/shards", recursive=True)
    remote = ShardIndex.read("s3://corpus/shards")
    for readers in (0, 1):
        found = epoch(stream(remote, tmp_path / str(readers), readers=readers))
        assert found == epoch(stream(local, tmp_path / "other"))
    damaged = bytearray((Path(str(local.folder)) / SHARD).read_bytes())
    damaged[700] ^= 8
    bucket.pipe_file(f"corpus/shards/{SHARD}", bytes(damaged))
    with pytest.raises(BadShard, match=rf"s3://corpus/shards/{SHARD}.*attempts"):
        epoch(stream(remote, tmp_path / "new", retry_seconds=0.5))
    bucket.rm(f"corpus/shards/{SHARD}")
    fsspec.filesystem("s3").invalidate_cache()
    with pytest.raises(BadShard, match=rf"s3://corpus/shards/{SHARD} does not exist"):
        epoch(stream(remote, tmp_path / "new"))
    with pytest.raises(ShardError, match=r"s3://corpus/nowhere/index\.json does not exist"):
        ShardIndex.read("s3://corpus/nowhere")
