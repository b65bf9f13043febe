"""Damage of every kind in a shard, also where the index was made to agree with it, never becomes a sample."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_samples import MakeShards, npy

from glomo_dist.data import BadShard, Reading, ShardIndex, Stream, place
from glomo_dist.data.shards import tarsamples as tars
from glomo_dist.data.shards.decode import Layout, decode
from glomo_dist.data.shards.index import shards_fingerprint
from glomo_dist.data.shards.tarsamples import parse_sample, parse_samples, sample_key
from glomo_dist.data.storage.places import Address
from glomo_dist.runtime.errors import ConfigError, ShardError

LENGTHS = [5, 0, 300, 7, 1, 40]


@pytest.fixture
def index(make_shards: MakeShards) -> ShardIndex:
    return make_shards(LENGTHS, 1 << 20)


def content_of(index: ShardIndex) -> bytes:
    return (Path(str(index.folder)) / index.shards[0].name).read_bytes()


def decoded(content: bytes, layout: Layout) -> np.ndarray:
    parts: list[bytes] = []
    decode(io.BytesIO(content), layout, Path("shard-00000.tar"), parts.append, float("inf"))
    return np.frombuffer(b"".join(parts), tars.id_dtype(layout.vocab_size))


def agreeing(layout: Layout, content: bytes, **changes: object) -> Layout:
    """The layout of an index that was made for the damaged bytes."""
    return layout._replace(bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), **changes)


def test_whole_shard(index: ShardIndex) -> None:
    ids = decoded(content_of(index), index.layout(0))
    assert ids.tolist() == [(k + i) % 1000 for i, n in enumerate(LENGTHS) for k in range(n)]


def test_truncation_anywhere(index: ShardIndex) -> None:
    content, layout = content_of(index), index.layout(0)
    for size in {*range(0, len(content), 61), *range(0, len(content), 512), len(content) - 1}:
        with pytest.raises(ShardError, match="shard-00000"):
            decoded(content[:size], layout)
    data_end = int(index.offsets[-1]) + 3 * 512 + 128 + 2 * LENGTHS[-1]
    for size in range(int(index.offsets[-1]) + 1, data_end, 7):  # also when size and hash agree with it
        with pytest.raises(ShardError):
            decoded(content[:size], agreeing(layout, content[:size]))
    with pytest.raises(ShardError, match="more than the"):
        decoded(content + b"\0", layout)


def test_a_long_array_cut_near_its_end(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_shards([5, 2000], 1 << 20)
    content, layout = content_of(index)[: int(index.offsets[1]) + 5000], index.layout(0)
    with pytest.raises(ShardError, match=r"000000001\.npy: the shard ends inside it"):
        decoded(content, agreeing(layout, content))
    monkeypatch.setattr("glomo_dist.data.shards.decode._PIECE", 1024)  # the place is the shard's all the same
    with pytest.raises(ShardError, match=rf"ends after {len(content)} bytes, the index says {layout.bytes}"):
        decoded(content, layout)


def test_flipped_bits_anywhere(index: ShardIndex) -> None:
    content, layout = content_of(index), index.layout(0)
    for at in np.random.default_rng(0).integers(0, len(content), 400).tolist():
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ShardError):
            decoded(bytes(damaged), layout)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**30), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
def test_many_at_once_are_judged_as_one_by_one(index: ShardIndex, changes: list[tuple[int, bytes]]) -> None:
    """Overwrite bytes, mostly in the heads, and make the index agree: both checks say the same and give the same."""
    content, layout = content_of(index), index.layout(0)
    damaged = bytearray(content)
    for where, new in changes:
        # heads of members are full of meaning
        at = where % (512 * (len(content) // 512)) // 512 * 512 + where % 160
        damaged[at : at + len(new)] = new
    del damaged[len(content) :]
    borders = [*layout.offsets.tolist(), len(content)]
    one_by_one: list[np.ndarray] | None = []
    try:
        for i, n in enumerate(LENGTHS):
            part = bytes(damaged[borders[i] : borders[i + 1]])
            one_by_one.append(  # type: ignore[union-attr]
                parse_sample(part, "x", sample_key(i), borders[i], n, 1000, i == len(LENGTHS) - 1).ids
            )
    except ShardError:
        one_by_one = None
    arguments = (bytes(damaged), "x", 0, layout.offsets, layout.lengths, 1000, 0, True)
    if one_by_one is None:
        with pytest.raises(ShardError):
            parse_samples(*arguments)
    else:
        assert parse_samples(*arguments).tolist() == np.concatenate(one_by_one).tolist()


def member(name: str, content: bytes, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


class Canary:
    """Unpickled, it writes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def sample(key: str, ids: bytes | None = None, name: str | None = None) -> list[bytes]:
    ids = npy(np.arange(4, dtype=np.uint16)) if ids is None else ids
    return [member(f"{key}.json", b"{}"), member(name or f"{key}.npy", ids)]


K = [sample_key(i) for i in range(3)]
GOOD = [sample(key) for key in K]


def attacks(canary: Path) -> dict[str, tuple[list[list[bytes]], str]]:
    """Members of three samples, the second of which is not what it should be."""
    evil = pickle.dumps(Canary(canary))
    array = io.BytesIO()
    np.save(array, np.array([Canary(canary)] * 4, object), allow_pickle=True)
    return {
        "duplicate key": ([GOOD[0], GOOD[0], GOOD[2]], "expected the file 000000001.json, got '000000000.json'"),
        "interleaved": ([GOOD[0], [GOOD[1][0], GOOD[2][0]], [GOOD[1][1], GOOD[2][1]]], "the file .*npy, got"),
        "missing member": ([GOOD[0], GOOD[1][:1], GOOD[2]], r"000000001.*byte 3072 is not a tar header.*file ends"),
        "extra member": ([GOOD[0], [*GOOD[1], member("x.txt", b"x")], GOOD[2]], r"000000001.*at byte 4096.*extra"),
        "zeros between": ([GOOD[0], [*GOOD[1], bytes(512)], GOOD[2]], r"000000001.*at byte 4096.*extra"),
        "extra at the end": ([GOOD[0], GOOD[1], [*GOOD[2], member("x.txt", b"x")]], "000000002.*follows"),
        "wrong name": ([GOOD[0], sample(K[1], name="../../evil.npy"), GOOD[2]], r"got '\.\./\.\./evil\.npy'"),
        "absolute name": ([GOOD[0], sample(K[1], name="/etc/evil"), GOOD[2]], "got '/etc/evil'"),
        "symbolic link": (
            [GOOD[0], [GOOD[1][0], member(f"{K[1]}.npy", b"", type=tarfile.SYMTYPE, linkname="/etc/x")], GOOD[2]],
            "which is no file",
        ),
        "hard link": (
            [GOOD[0], [GOOD[1][0], member(f"{K[1]}.npy", b"", type=tarfile.LNKTYPE, linkname="x.npy")], GOOD[2]],
            "which is no file",
        ),
        "device": ([GOOD[0], [GOOD[1][0], member(f"{K[1]}.npy", b"", type=tarfile.CHRTYPE)], GOOD[2]], "no file"),
        "oversized": ([GOOD[0], [GOOD[1][0], member(f"{K[1]}.npy", bytes(99_999))], GOOD[2]], "not a plain numpy"),
        "claims a terabyte": (
            [GOOD[0], [GOOD[1][0], tarfile.TarInfo.tobuf(_huge(f"{K[1]}.npy"), tarfile.GNU_FORMAT)], GOOD[2]],
            "larger than the index says",
        ),
        "pickle": ([GOOD[0], [GOOD[1][0], member(f"{K[1]}.pkl", evil)], GOOD[2]], r"got '000000001\.pkl'"),
        "pickle named npy": ([GOOD[0], sample(K[1], evil), GOOD[2]], "not a plain numpy array"),
        "pickled objects": ([GOOD[0], sample(K[1], array.getvalue()), GOOD[2]], "would have to be unpickled"),
        "signed ids": ([GOOD[0], sample(K[1], npy(np.arange(4, dtype=np.int16))), GOOD[2]], "got int16"),
        "wide ids": ([GOOD[0], sample(K[1], npy(np.arange(4, dtype=np.uint32))), GOOD[2]], "got uint32"),
        "big-endian ids": ([GOOD[0], sample(K[1], npy(np.arange(4, dtype=">u2"))), GOOD[2]], "got >u2"),
        "no such id": ([GOOD[0], sample(K[1], npy(np.full(4, 1000, np.uint16))), GOOD[2]], "id 1000 is outside"),
        "no such ids": ([sample(K[n], npy(np.full(4, i, np.uint16))) for n, i in enumerate((9, 1000, 2000))],
                        r"000000001\.npy: id 1000 is outside"),
        "a table": ([GOOD[0], sample(K[1], npy(np.zeros((4, 1), np.uint16))), GOOD[2]], r"got uint16 \[4, 1\]"),
        "a checksum of other digits": (  # of the same value, if they were octal
            [GOOD[0], [member(f"{K[1]}.json", b"{}", mode=6).replace(b"007560", b"007558"), GOOD[1][1]], GOOD[2]],
            "000000001: byte 2048 is not a tar header"),
        "HTML": ([[b"<!DOCTYPE html><title>Sign in</title>".ljust(2048)], GOOD[1], GOOD[2]], "<!DOCTYPE"),
    }  # fmt: skip


def _huge(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = 1 << 40
    return info


def hostile(folder: Path, samples: list[list[bytes]]) -> Path:
    """A shard folder whose index agrees with whatever bytes the samples are."""
    (folder / "shards").mkdir()
    parts = [b"".join(members) for members in samples]
    content = b"".join(parts) + bytes(1024)
    name = "shard-00000.tar"
    (folder / "shards" / name).write_bytes(content)
    offsets = np.cumsum([0, *(len(part) for part in parts[:-1])]).tolist()
    shard = {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "samples": 3,
             "tokens": 12, "offsets": offsets, "lengths": [4, 4, 4]}  # fmt: skip
    head = {"format": "glomo-shards", "version": 1, "kind": "words", "tokenizer": "0" * 16, "vocab_size": 1000,
            "samples": 3, "tokens": 12}  # fmt: skip
    value = {**head, "fingerprint": shards_fingerprint(head, [shard]), "shards": [shard]}
    (folder / "shards" / "index.json").write_text(json.dumps(value))
    return folder / "shards"


@pytest.mark.parametrize("name", attacks(Path("canary")))
def test_a_hostile_folder_is_refused_and_nothing_executes(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    samples, message = attacks(canary)[name]
    index = ShardIndex.read(hostile(tmp_path, samples))
    for readers in (0, 1) if "pickle" in name else (0,):
        stream = Stream(index, window=4, seed=0, global_batch=3, reading=Reading(readers=readers))
        batches = stream.iterate()
        with pytest.raises(BadShard, match=message) as error:
            next(batches)
        assert "shard-00000.tar" in str(error.value)
    assert not canary.exists()


def test_what_the_attacks_change_is_fine_otherwise(tmp_path: Path) -> None:
    fields = b"{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }\n"  # a head of another length than numpy's
    ids = b"\x93NUMPY\1\0" + len(fields).to_bytes(2, "little") + fields + np.arange(4, dtype="<u2").tobytes()
    index = ShardIndex.read(hostile(tmp_path, [GOOD[0], *(sample(key, ids) for key in K[1:])]))
    batch = Stream(index, window=4, seed=0, global_batch=3).batch(0)
    assert batch.tokens.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize(
    "text",
    [
        "pipe:touch {}",
        "pipe://touch {}",
        "simplecache::https://a/b",
        "shell://x",
        "reference://x",
        "zip://a::file://b",
    ],
)
def test_what_is_no_place_is_refused(tmp_path: Path, text: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(ConfigError, match="not a place for shards"):
        ShardIndex.read(text.format(canary))
    assert not canary.exists()


def test_places_join_and_hide_what_opens_them() -> None:
    address = place("https://me:secret@host/shards/?token=x")
    assert str(address / "a.tar") == "https://host/shards/a.tar"
    assert (address / "a.tar").url == "https://me:secret@host/shards/a.tar?token=x"  # type: ignore[union-attr]
    assert place("file:///x/y") == Path("/x/y") and place("shards") == Path("shards")
    assert isinstance(place(f"https://host/shards?token={'x' * 5000}"), Address)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "/etc/passwd", "pipe:touch x", "a\\b", "x?y", "x#y", ".hidden", "a\0b", 5]
)
def test_shard_names_are_plain(tmp_path: Path, name: object) -> None:
    folder = hostile(tmp_path, GOOD)
    value = json.loads((folder / "index.json").read_text())
    value["shards"][0]["name"] = name
    (folder / "index.json").write_text(json.dumps(value))
    with pytest.raises(ShardError, match="not a plain file name"):
        ShardIndex.read(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": [4.5, 3.5, 4]}, {"lengths": ["4", "4", "4"]}, {"lengths": [8, 8, -4]},
        {"lengths": [[4], [4], [4]]}, {"lengths": [1 << 70, 4, 4]}, {"offsets": [0, 1, 2]}, {"sha256": "abc"},
        {"offsets": [512, 2048, 4096]}, {"offsets": [0, 4096, 2048]}, {"offsets": [0, 2048, 1 << 20]},
        {"sha256": None}, {"bytes": -1}, {"bytes": 10.0}, {"samples": True},
        {"lengths": [2**63 - 1, 2**63 - 1, 14]}, {"lengths": [2000, 4, 4], "tokens": 2008},
    ],
)  # fmt: skip
def test_nonsense_in_the_index(tmp_path: Path, change: dict[str, object]) -> None:
    folder = hostile(tmp_path, GOOD)
    value = json.loads((folder / "index.json").read_text())
    value["shards"][0].update(change)
    (folder / "index.json").write_text(json.dumps(value))
    with pytest.raises(ShardError, match=r"damaged index \((sha256|sizes|counts, lengths and|lengths or) "):
        ShardIndex.read(folder)


def test_lengths_that_only_the_index_has_wrong(tmp_path: Path) -> None:
    """After the right ones were read, and cached: what is cached belongs to the index it was checked against."""
    folder = hostile(tmp_path, GOOD)
    Stream(ShardIndex.read(folder), window=4, seed=0, global_batch=3).batch(0)
    value = json.loads((folder / "index.json").read_text())
    value["shards"][0]["lengths"] = [5, 3, 4]
    (folder / "index.json").write_text(json.dumps(value))
    with pytest.raises(BadShard, match="4 units, the index says 5"):
        Stream(ShardIndex.read(folder), window=4, seed=0, global_batch=3).batch(0)
