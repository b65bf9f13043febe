"""Reading shards: the index of a shard folder, and any sample of it at its byte offset."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.data.npy import read_header
from glomo_dist.data.tokenizer import Tokenizer, load_tokenizer
from glomo_dist.runtime.errors import DataError, ShardError
from glomo_dist.runtime.files import read_json, sha256_file
from glomo_dist.runtime.fingerprint import fingerprint

INDEX_NAME = "index.json"
SHARDS_FORMAT = "glomo-shards"
SHARDS_VERSION = 1
_BLOCK = tarfile.BLOCKSIZE


def sample_key(sample: int) -> str:
    """Name of sample number `sample` (over all shards) inside its tar file."""
    return f"{sample:09d}"


def shards_fingerprint(head: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> str:
    """The ordered content of a shard folder as 16 hexadecimal digits."""
    content = [[shard["sha256"], shard["samples"], shard["tokens"]] for shard in shards]
    return fingerprint({"format": SHARDS_FORMAT, "tokenizer": head["tokenizer"], "shards": content})


@dataclass(frozen=True)
class Shard:
    """One tar file: samples `first` .. `first` + `samples` - 1 of the folder."""

    name: str
    bytes: int
    sha256: str
    samples: int
    tokens: int
    first: int


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """What `index.json` says, checked against the folder. Sample i is a number over all shards.

    lengths, offsets: int64 [samples], units of each sample and its first byte in its shard.
    """

    folder: Path
    kind: str
    tokenizer: str
    fingerprint: str
    vocab_size: int
    samples: int
    tokens: int
    shards: tuple[Shard, ...]
    lengths: np.ndarray
    offsets: np.ndarray

    @classmethod
    def read(cls, folder: str | Path, *, verify: bool = False) -> ShardIndex:
        """The index of `folder`.

        verify: also hash every shard (reads all bytes once); sizes are always checked.
        Raises ShardError naming the shard if anything is missing, of another version or not as it was written.
        """
        folder = Path(folder)
        path = folder / INDEX_NAME
        try:
            value = read_json(path)
        except DataError as e:
            raise ShardError(f"{e} A shard folder is what `glomo prepare` writes.") from None
        index = cls(folder=folder, **_parse(value, str(path)))
        for shard in index.shards:
            index._check_size(shard)
        if verify:
            index.verify()
        return index

    def _check_size(self, shard: Shard) -> None:
        path = self.folder / shard.name
        if not path.is_file():
            raise ShardError(
                f"shard {path} is missing. Copy the whole folder again, or prepare the data again."
            )
        if (size := path.stat().st_size) != shard.bytes:
            raise ShardError(
                f"shard {path} has {size} bytes, the index says {shard.bytes}: it was cut or changed. "
                "Copy it again, or prepare the data again."
            )

    def verify(self) -> None:
        """Raise ShardError if a shard's bytes are not those that were written (SHA-256 of every shard)."""
        for shard in self.shards:
            self._check_size(shard)
            digest = sha256_file(self.folder / shard.name)
            if digest != shard.sha256:
                raise ShardError(
                    f"shard {self.folder / shard.name}: SHA-256 is {digest[:12]}…, the index says "
                    f"{shard.sha256[:12]}…: it was damaged. Copy it again, or prepare the data again."
                )

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shards; ShardError if it is not the one that made them."""
        tokenizer = load_tokenizer(self.folder)
        if tokenizer.fingerprint != self.tokenizer:
            raise ShardError(
                f"{self.folder / 'tokenizer.json'} has fingerprint {tokenizer.fingerprint}, the shards were made "
                f"with {self.tokenizer}. Copy the whole folder again."
            )
        return tokenizer

    @cached_property
    def shard_of_sample(self) -> np.ndarray:
        """int32 [samples]: position in `shards`."""
        return np.repeat(
            np.arange(len(self.shards), dtype=np.int32), [shard.samples for shard in self.shards]
        )


def _parse(value: Any, where: str) -> dict[str, Any]:
    """Fields of ShardIndex from the JSON of an index, every one of them checked."""
    if not isinstance(value, dict) or value.get("format") != SHARDS_FORMAT:
        raise ShardError(f"{where}: not an index of shards (no format {SHARDS_FORMAT!r}).")
    if value.get("version") != SHARDS_VERSION:
        raise ShardError(
            f"{where}: shard format version {value.get('version')!r}, this program reads version "
            f"{SHARDS_VERSION}. Prepare the data again with this version."
        )
    try:
        shards, first = [], 0
        for entry in value["shards"]:
            shard = Shard(
                first=first, **{k: entry[k] for k in ("name", "bytes", "sha256", "samples", "tokens")}
            )
            if Path(shard.name).name != shard.name:
                raise ValueError(f"shard name {shard.name!r} is not a plain file name")
            shards.append(shard)
            first += shard.samples
        fields = {
            key: value[key] for key in ("kind", "tokenizer", "fingerprint", "vocab_size", "samples", "tokens")
        }
        lengths = [np.asarray(entry["lengths"], np.int64) for entry in value["shards"]]
        offsets = [np.asarray(entry["offsets"], np.int64) for entry in value["shards"]]
        for shard, n, at in zip(shards, lengths, offsets, strict=True):
            consistent = (
                len(n) == len(at) == shard.samples > 0
                and int(n.sum()) == shard.tokens
                and at[0] == 0
                and at[-1] < shard.bytes
                and (np.diff(at) > 0).all()
                and (at % _BLOCK == 0).all()
            )
            if not consistent:
                raise ValueError(f"counts, lengths and offsets of {shard.name} do not agree")
        if not shards or (first, sum(s.tokens for s in shards)) != (fields["samples"], fields["tokens"]):
            raise ValueError("totals and shards do not agree")
        if fields["fingerprint"] != shards_fingerprint(fields, value["shards"]):
            raise ValueError("the fingerprint does not belong to this content")
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        reason = f"missing key {e}" if isinstance(e, KeyError) else str(e)
        raise ShardError(
            f"{where}: damaged index ({reason}). Copy it again, or prepare the data again."
        ) from e
    return {
        **fields,
        "shards": tuple(shards),
        "lengths": np.concatenate(lengths),
        "offsets": np.concatenate(offsets),
    }


def read_sample(index: ShardIndex, i: int) -> np.ndarray:
    """The ids of sample `i`, unsigned integers [lengths[i]] in the dtype they are stored in.

    Reads the bytes of this sample alone and unpickles nothing. Raises ShardError naming shard and key.
    """
    where, members = _read_members(index, i)
    array = io.BytesIO(members["npy"])
    try:
        shape, dtype = read_header(array)
    except ValueError as e:
        raise ShardError(f"{where}.npy: not a plain numpy array ({e}). {_AGAIN}") from e
    if dtype.kind != "u" or len(shape) != 1:
        raise ShardError(f"{where}.npy: expected unsigned integers [n], got {dtype} {list(shape)}. {_AGAIN}")
    if shape[0] != index.lengths[i]:
        raise ShardError(f"{where}.npy: {shape[0]} units, the index says {index.lengths[i]}. {_AGAIN}")
    if (left := len(members["npy"]) - array.tell()) != shape[0] * dtype.itemsize:
        raise ShardError(f"{where}.npy: {left} bytes of ids, {shape[0]} {dtype} were promised. {_AGAIN}")
    ids = np.frombuffer(members["npy"], dtype, offset=array.tell())
    if len(ids) and (largest := int(ids.max())) >= index.vocab_size:
        raise ShardError(
            f"{where}.npy: id {largest} is outside the vocabulary of {index.vocab_size}. {_AGAIN}"
        )
    return ids


def read_metadata(index: ShardIndex, i: int) -> dict[str, Any]:
    """Where sample `i` came from: {"source": file, "row": number in it}. Raises ShardError."""
    where, members = _read_members(index, i)
    try:
        value = json.loads(members["json"])
    except ValueError as e:
        raise ShardError(f"{where}.json: not valid JSON ({e}). {_AGAIN}") from e
    if not isinstance(value, dict):
        raise ShardError(f"{where}.json: expected an object, got {type(value).__name__}. {_AGAIN}")
    return value


_AGAIN = "The shard is damaged: copy it again, or prepare the data again."


def _read_members(index: ShardIndex, i: int) -> tuple[str, dict[str, bytes]]:
    """Contents of the two files of sample `i` by their ending, and "shard, key" for errors."""
    if not 0 <= i < index.samples:
        raise IndexError(f"sample {i} of {index.samples}")
    number = int(index.shard_of_sample[i])
    shard = index.shards[number]
    path, key = index.folder / shard.name, sample_key(i)
    where = f"shard {path}, key {key}"
    start = int(index.offsets[i])
    end = int(index.offsets[i + 1]) if i + 1 < shard.first + shard.samples else shard.bytes
    try:
        with open(path, "rb") as f:
            content = os.pread(f.fileno(), end - start, start)
    except OSError as e:
        raise ShardError(f"{where}: cannot be read ({e.strerror}). Copy the shard again.") from e
    members: dict[str, bytes] = {}
    position = 0
    for ending in ("json", "npy"):  # the order in which webdataset writes them
        header = content[position : position + _BLOCK]
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as e:
            begins = f"begins with {header[:16]!r}" if header else "the file ends there"
            raise ShardError(
                f"{where}: byte {start + position} is not a tar header ({e}; {begins}). {_AGAIN}"
            ) from e
        if member.name != f"{key}.{ending}" or not member.isreg():
            raise ShardError(f"{where}: expected the file {key}.{ending}, got {member.name!r}. {_AGAIN}")
        position += _BLOCK
        members[ending] = content[position : position + member.size]
        if len(members[ending]) != member.size:
            raise ShardError(f"{where}.{ending}: the shard ends inside it. {_AGAIN}")
        position += -(-member.size // _BLOCK) * _BLOCK
    return where, members
