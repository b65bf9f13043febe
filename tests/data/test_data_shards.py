"""Shards: what is written, that anybody's WebDataset reads it, and every kind of damage."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shard_samples import MakeShards, npy

from glomo_dist.data.shards.index import ShardIndex, read_metadata, read_sample
from glomo_dist.data.shards.tarsamples import sample_key
from glomo_dist.data.shards.writing import ShardFolder
from glomo_dist.data.tokenizers.text import WordTokenizer
from glomo_dist.runtime.errors import ShardError
from glomo_dist.runtime.files import sha256_file

LENGTHS = [3, 1, 0, 700, 5, 2000, 1, 9, 12, 40, 8, 8]


def test_every_sample_is_read_at_its_offset(make_shards: MakeShards) -> None:
    index = make_shards(LENGTHS)
    assert len(index.shards) > 2
    assert (index.samples, index.tokens) == (len(LENGTHS), sum(LENGTHS))
    assert index.lengths.tolist() == LENGTHS and index.lengths.dtype == np.int64
    for i in np.random.default_rng(0).permutation(len(LENGTHS)):
        ids = read_sample(index, int(i))
        assert ids.dtype == np.uint16
        assert (ids == (np.arange(LENGTHS[i]) + i) % 1000).all()
        assert read_metadata(index, int(i)) == {"source": "made", "row": i}
    with pytest.raises(IndexError):
        read_sample(index, len(LENGTHS))
    index.verify()


def test_plain_webdataset_reads_the_shards(make_shards: MakeShards) -> None:
    index = make_shards(LENGTHS)
    urls = [str(index.folder / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [sample_key(i) for i in range(len(LENGTHS))]
    for i, sample in enumerate(samples):
        assert (sample["npy"] == read_sample(index, i)).all()
        assert sample["json"]["row"] == i


def test_the_bytes_depend_on_the_samples_alone(make_shards: MakeShards) -> None:
    one, two = make_shards(LENGTHS, name="one"), make_shards(LENGTHS, name="two")
    assert one.fingerprint == two.fingerprint
    assert [s.sha256 for s in one.shards] == [s.sha256 for s in two.shards]
    assert make_shards([*LENGTHS, 4], name="three").fingerprint != one.fingerprint


def test_ids_are_stored_in_the_smallest_type(make_shards: MakeShards, tmp_path: Path) -> None:
    for size, dtype in ((256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)):
        words = WordTokenizer(("<unk>", *map(str, range(size - 1))))
        writer = ShardFolder(tmp_path / str(size), words, 1 << 20)
        writer.add(np.array([size - 1, 0]), {})
        writer.close()
        ids = read_sample(ShardIndex.read(tmp_path / str(size)), 0)
        assert ids.dtype == dtype and ids.tolist() == [size - 1, 0]


def test_another_tokenizer_beside_the_shards_is_refused(make_shards: MakeShards) -> None:
    index = make_shards([3])
    assert index.load_tokenizer().vocab_size == 1000
    other = WordTokenizer(("<unk>", "a")).to_json()
    (index.folder / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ShardError, match="the shards were made with"):
        index.load_tokenizer()


def edit_index(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "index.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


EMPTY = {
    "name": "b.tar", "bytes": 1024, "sha256": "0" * 64, "samples": 0, "tokens": 0, "offsets": [], "lengths": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.update(version=2), "version 2, this program reads version 1"),
        (lambda v: v.update(format="x"), "not an index of shards"),
        (lambda v: v.pop("tokens"), "missing key 'tokens'"),
        (lambda v: v.update(samples=5), "totals and shards do not agree"),
        (lambda v: v.update(tokens=5), "totals and shards do not agree"),
        (lambda v: v.update(shards=[]), "totals and shards do not agree"),
        (lambda v: v.update(shards=[], samples=0, tokens=0), "totals and shards do not agree"),
        (lambda v: v.update(shards=None), "damaged index"),
        (lambda v: v["shards"].append(EMPTY), r"of b\.tar do not agree"),
        (lambda v: v["shards"].append(v["shards"][0]), "two shards have the same name"),
        (lambda v: v.update(samples=float(v["samples"])), "totals are not whole numbers"),
        (lambda v: v.update(tokens=float(v["tokens"])), "totals are not whole numbers"),
        (lambda v: v["shards"][0].update(name="../a.tar"), "not a plain file name"),
        (lambda v: v["shards"][0].update(name="a.tar/../../b.tar"), "not a plain file name"),
        (lambda v: v["shards"][0].update(samples="3"), "damaged index"),
        (lambda v: v["shards"][0].update(bytes=True), "sizes of shard-00000.tar are not whole numbers"),
        (lambda v: v["shards"][0]["lengths"].__setitem__(slice(2), [-1, 5]), r"of shard-00000\.tar do not"),
        (lambda v: v.update(vocab_size=0), "vocab_size is 0"),
        (lambda v: v.update(vocab_size=2**32 + 1), "vocab_size is 4294967297"),
        (lambda v: v["shards"][0]["offsets"].reverse(), r"of shard-00000\.tar do not agree"),
        (lambda v: v["shards"][0]["lengths"].__setitem__(0, 4), r"of shard-00000\.tar do not agree"),
        (lambda v: v["shards"][0]["offsets"].__setitem__(0, 512), r"of shard-00000\.tar do not agree"),
        (lambda v: v["shards"][0]["offsets"].__setitem__(1, 700), r"of shard-00000\.tar do not agree"),
        (lambda v: v["shards"][0]["lengths"].pop(), r"of shard-00000\.tar do not agree"),
        (lambda v: v["shards"][0].update(sha256="0" * 64), "the fingerprint does not belong"),
    ],
)
def test_damaged_index(make_shards: MakeShards, change: Callable[[dict], object], message: str) -> None:
    folder = make_shards(LENGTHS).folder
    edit_index(folder, change)
    with pytest.raises(ShardError, match=message) as error:
        ShardIndex.read(folder)
    assert "index.json" in str(error.value)


@pytest.mark.parametrize("key, value", [("kind", "pixels"), ("vocab_size", 999), ("vocab_size", 2000)])
def test_an_index_that_says_another_tokenizer_is_refused(
    make_shards: MakeShards, key: str, value: object
) -> None:
    folder = make_shards(LENGTHS).folder
    edit_index(folder, lambda v: v.update({key: value}))
    with pytest.raises(ShardError, match=rf"index\.json: {key} is {value!r}, that of the tokenizer"):
        ShardIndex.read(folder).load_tokenizer()


def test_missing_and_cut_index(make_shards: MakeShards, tmp_path: Path) -> None:
    folder = make_shards(LENGTHS).folder
    path = folder / "index.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ShardError, match=r"index\.json, line .*not valid JSON"):
        ShardIndex.read(folder)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ShardError, match=r"index\.json does not exist.*glomo prepare"):
        ShardIndex.read(folder)
    (folder / "train").mkdir()
    (folder / "train" / "index.json").write_bytes(content)
    with pytest.raises(
        ShardError, match=r"index\.json does not exist: the shards are in .*/train and /valid"
    ):
        ShardIndex.read(folder)
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"index\.json, line .*not valid JSON"):
        ShardIndex.read(folder)


def test_missing_cut_and_changed_shards_are_found_on_opening(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    folder = make_shards(LENGTHS).folder
    shard = folder / "shard-00001.tar"
    content = bytearray(shard.read_bytes())
    at = content.index(b"\x93NUMPY") + 130
    content[at] ^= 1  # one bit of one id
    shard.write_bytes(content)
    index = ShardIndex.read(folder)
    with pytest.raises(ShardError, match=r"shard-00001\.tar: SHA-256 is"):
        index.verify()
    with pytest.raises(ShardError, match=r"shard-00001\.tar: SHA-256 is"):
        ShardIndex.read(folder, verify=True)
    with monkeypatch.context() as bad_disk:
        bad_disk.setattr("glomo_dist.data.shards.index.sha256_file", unreadable)
        with pytest.raises(
            ShardError, match=r"^shard .*shard-00000\.tar cannot be read: Input/output error\. Copy"
        ):
            index.verify()
    for other in (content + bytes(512), content[:-512]):
        shard.write_bytes(other)
        with pytest.raises(ShardError, match=rf"shard-00001\.tar has {len(other)} bytes, the index says"):
            ShardIndex.read(folder)
    shard.unlink()
    with pytest.raises(ShardError, match=r"^shard .*shard-00001\.tar is missing"):
        ShardIndex.read(folder)
    assert ShardIndex.read(folder, max_bad_shards=1).fingerprint == index.fingerprint
    (folder / "shard-00002.tar").unlink()
    with pytest.raises(
        ShardError, match=r"^2 bad shards, max_bad_shards allows 1\. shard .*00001\.tar is missing"
    ):
        ShardIndex.read(folder, max_bad_shards=1)


def put(index: ShardIndex, sample: int, content: bytes, where: int = 0) -> None:
    """Overwrite bytes of a shard at `where` bytes into a sample."""
    path = index.folder / index.shards[int(index.shard_of_sample[sample])].name
    with open(path, "r+b") as f:
        f.seek(int(index.offsets[sample]) + where)
        f.write(content)


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


NPY = 1536  # bytes into a sample where its array begins: header, metadata, header
KEY = sample_key(4)
DAMAGE = {
    "HTML": (0, b"<!DOCTYPE html><html><body>Not found".ljust(512), r"not a tar header.*<!DOCTYPE"),
    "zeros": (0, bytes(512), "not a tar header"),
    "another key": (
        0,
        header("000000007.json", 30),
        rf"expected the file {KEY}\.json, got '000000007\.json'",
    ),
    "another member": (1024, header(f"{KEY}.pkl", 138), rf"expected the file {KEY}\.npy, got '{KEY}\.pkl'"),
    "float ids": (NPY, npy(np.zeros(5, np.float16)), r"expected unsigned integers \[n\], got float16 \[5\]"),
    "signed ids": (NPY, npy(np.zeros(5, np.int16)), "got int16"),
    "a table": (NPY, npy(np.zeros((5, 1), np.uint16)), r"got uint16 \[5, 1\]"),
    "wide ids": (NPY, npy(np.zeros(5, np.uint64)), "expected uint16, the smallest for 1000 ids, got uint64"),
    "a huge table": (
        NPY,
        npy(np.zeros(5, np.uint16)).replace(b"(5,), }    ", b"(1 << 40,)}"),
        "not a plain numpy",
    ),
    "bytes behind the ids": (
        1024,
        header(f"{KEY}.npy", 140) + npy(np.zeros(5, np.uint16)) + b"xx",
        "12 bytes of ids, 5 uint16 were promised",
    ),
    "too few ids": (NPY, npy(np.zeros(4, np.uint16)), "4 units, the index says 5"),
    "no such id": (NPY, npy(np.full(5, 1000, np.uint16)), "id 1000 is outside the vocabulary of 1000"),
    "a pickle": (NPY, b"\x80\x04]\x94.", "not a plain numpy array"),
    "an archive": (NPY, b"PK\x03\x04", "not a plain numpy array"),
    "size too large": (1024, header(f"{KEY}.npy", 1 << 30), "the shard ends inside it"),
}


@pytest.mark.parametrize("where, content, message", DAMAGE.values(), ids=DAMAGE)
def test_damaged_sample_names_shard_and_key(
    make_shards: MakeShards, where: int, content: bytes, message: str
) -> None:
    index = make_shards([5] * 8, shard_bytes=4096)
    put(index, 4, content, where)
    with pytest.raises(ShardError, match=message) as error:
        read_sample(index, 4)
    shard = index.shards[int(index.shard_of_sample[4])].name
    assert shard in str(error.value) and f"key {KEY}" in str(error.value)
    for i in (3, 5):
        assert len(read_sample(index, i)) == 5  # neighbours are not touched


def test_shard_cut_after_opening(make_shards: MakeShards) -> None:
    index = make_shards([2000] * 3, shard_bytes=1 << 20)
    path = index.folder / index.shards[0].name
    content = path.read_bytes()
    path.write_bytes(content[: int(index.offsets[2]) + 2000])
    assert len(read_sample(index, 1)) == 2000
    with pytest.raises(ShardError, match=r"key 000000002\.npy: the shard ends inside it"):
        read_sample(index, 2)
    path.write_bytes(content[: int(index.offsets[2])])
    with pytest.raises(ShardError, match="the file ends there"):
        read_sample(index, 2)
    shutil.rmtree(index.folder)
    with pytest.raises(ShardError, match="cannot be read"):
        read_sample(index, 0)


def test_damaged_metadata(make_shards: MakeShards) -> None:
    index = make_shards([5])
    put(index, 0, b"{{{{", 512)
    with pytest.raises(ShardError, match=r"key 000000000\.json: not valid JSON"):
        read_metadata(index, 0)
    assert len(read_sample(index, 0)) == 5


def test_index_hashes_are_those_of_the_files(make_shards: MakeShards) -> None:
    index = make_shards(LENGTHS)
    for shard in index.shards:
        assert shard.sha256 == sha256_file(index.folder / shard.name)
    assert re.fullmatch("[0-9a-f]{16}", index.fingerprint)


def test_abandoning_does_not_hide_what_failed_first(tmp_path: Path) -> None:
    writer = ShardFolder(tmp_path / "shards", WordTokenizer(("<unk>", "a")), 8192)
    writer.add(np.zeros(3, np.int64), {})
    whole = writer._file
    assert whole is not None
    writer._file = open("/dev/full", "wb")  # noqa: SIM115 - closing it is what fails
    writer._file.write(b"x")
    writer.abandon()
    assert writer._file.closed
    whole.close()
