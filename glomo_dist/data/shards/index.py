"""Reading shards: the index of a shard folder, and any sample of it at its byte offset."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.data.shards.decode import Layout
from glomo_dist.data.shards.ragged import starts_of
from glomo_dist.data.shards.tarsamples import AGAIN, BLOCK, Sample, id_dtype, parse_sample, sample_key
from glomo_dist.data.storage.places import Address, Place, exists, place, read_place
from glomo_dist.data.tokenizers.tokenizer import TOKENIZER, Tokenizer, tokenizer_from_json
from glomo_dist.runtime.errors import DataError, ShardError, describe
from glomo_dist.runtime.files import sha256_file
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.formats import check_format
from glomo_dist.runtime.json_files import parse_json

INDEX_NAME = "index.json"
SHARDS_FORMAT = "glomo-shards"
SHARDS_VERSION = 1
_PLAIN_NAME = re.compile(r"[\w-][\w.@+ -]*")  # of a shard: a file in the folder, nothing else
_RETRY_SECONDS = 60.0  # for index and tokenizer at an address


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

    kind, vocab_size: of the tokenizer.  tokenizer, fingerprint: the fingerprints of it and of the shards.
    lengths, offsets: int64 [samples], units of each sample and its first byte in its shard.
    """

    folder: Place
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
    def read(cls, folder: str | Place, *, verify: bool = False, max_bad_shards: int = 0) -> ShardIndex:
        """The index of `folder`, which may be an address (https://..., s3://...).

        verify: also hash every shard (reads all bytes once); sizes of local ones are always checked.
        max_bad_shards: local ones that may be missing or cut, for a reader that sets them aside when it meets them.
        Raises ShardError naming the shard if anything is missing, of another version or not as it was written.
        """
        folder = place(folder)
        path = folder / INDEX_NAME
        try:
            value = parse_json(read_place(path, _RETRY_SECONDS), str(path))
        except DataError as e:
            if isinstance(path, Path) and not exists(path) and exists(folder / "train" / INDEX_NAME):
                raise ShardError(
                    f"{path} does not exist: the shards are in {folder}/train and /valid."
                ) from None
            raise ShardError(f"{e} A shard folder is what `glomo prepare` writes.") from None
        index = cls(folder=folder, **_parse(value, str(path)))
        if isinstance(folder, Path):
            index._check_sizes(max_bad_shards)
        if verify:
            index.verify()
        return index

    def _check_sizes(self, allowed: int) -> None:
        errors = []
        for shard in self.shards:
            try:
                self._check_size(shard)
            except ShardError as e:
                errors.append(e)
        if len(errors) > allowed:
            more = f"{len(errors)} bad shards, max_bad_shards allows {allowed}. " if allowed else ""
            raise ShardError(f"{more}{errors[0]}")

    def _check_size(self, shard: Shard) -> None:
        path = self._local(shard)
        if not path.is_file():
            raise ShardError(
                f"shard {path} is missing. Copy the whole folder again, or prepare the data again."
            )
        if (size := path.stat().st_size) != shard.bytes:
            raise ShardError(
                f"shard {path} has {size} bytes, the index says {shard.bytes}: it was cut or changed. "
                "Copy it again, or prepare the data again."
            )

    def _local(self, shard: Shard) -> Path:
        if isinstance(self.folder, Address):
            raise ShardError(f"{self.folder} is not local: its shards are checked when they are read.")
        return self.folder / shard.name

    def verify(self) -> None:
        """Raise ShardError if a shard's bytes are not those that were written (SHA-256 of every shard)."""
        for shard in self.shards:
            self._check_size(shard)
            try:
                digest = sha256_file(self._local(shard))
            except OSError as e:
                raise ShardError(
                    f"shard {self.folder / shard.name} cannot be read: {describe(e)}. Copy it again, or prepare the "
                    "data again."
                ) from e
            if digest != shard.sha256:
                raise ShardError(
                    f"shard {self.folder / shard.name}: SHA-256 is {digest[:12]}…, the index says "
                    f"{shard.sha256[:12]}…: it was damaged. Copy it again, or prepare the data again."
                )

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer beside the shards; ShardError if it is not the one that made them."""
        where = self.folder / TOKENIZER
        tokenizer = tokenizer_from_json(parse_json(read_place(where, _RETRY_SECONDS), str(where)), str(where))
        if tokenizer.fingerprint != self.tokenizer:
            raise ShardError(
                f"{where} has fingerprint {tokenizer.fingerprint}, the shards were made "
                f"with {self.tokenizer}. Copy the whole folder again."
            )
        self.check_tokenizer(tokenizer)
        return tokenizer

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """ShardError unless the index says of the shards' tokenizer what it is: no fingerprint covers that."""
        for key in ("kind", "vocab_size"):
            said, found = getattr(self, key), getattr(tokenizer, key)
            if said != found:
                raise ShardError(
                    f"{self.folder / INDEX_NAME}: {key} is {said!r}, that of the tokenizer {self.tokenizer} is "
                    f"{found!r}: the index was changed. Copy it again, or prepare the data again."
                )

    def layout(self, number: int) -> Layout:
        """What is known of shard `number`, to check it against."""
        shard = self.shards[number]
        inside = slice(shard.first, shard.first + shard.samples)
        return Layout(
            shard.bytes,
            shard.sha256,
            self.vocab_size,
            shard.first,
            self.offsets[inside],
            self.lengths[inside],
        )

    @cached_property
    def units_before(self) -> np.ndarray:
        """int64 [samples]: units of the samples that come before each in its shard."""
        begun = starts_of(self.lengths)[:-1]
        return begun - begun[[shard.first for shard in self.shards]][self.shard_of_sample]

    @cached_property
    def shard_of_sample(self) -> np.ndarray:
        """int32 [samples]: position in `shards`."""
        return np.repeat(
            np.arange(len(self.shards), dtype=np.int32), [shard.samples for shard in self.shards]
        )


def _parse(value: Any, where: str) -> dict[str, Any]:
    """Fields of ShardIndex from the JSON of an index, every one of them checked."""
    check_format(
        value, SHARDS_FORMAT, SHARDS_VERSION, where, "an index of shards", error=ShardError,
        instead="Give the output folder of `glomo prepare`.", again="Prepare the data again with this version.",
    )  # fmt: skip
    try:
        shards, first = [], 0
        for entry in value["shards"]:
            shard = Shard(
                first=first, **{k: entry[k] for k in ("name", "bytes", "sha256", "samples", "tokens")}
            )
            if not isinstance(shard.name, str) or not _PLAIN_NAME.fullmatch(shard.name):
                raise ValueError(f"shard name {shard.name!r} is not a plain file name")
            if not isinstance(shard.sha256, str) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
                raise ValueError(f"sha256 of {shard.name} is {shard.sha256!r}")
            if any(type(n) is not int for n in (shard.bytes, shard.samples, shard.tokens)):
                raise ValueError(f"sizes of {shard.name} are not whole numbers")
            shards.append(shard)
            first += shard.samples
        fields = {
            key: value[key] for key in ("kind", "tokenizer", "fingerprint", "vocab_size", "samples", "tokens")
        }
        if any(type(fields[key]) is not int for key in ("samples", "tokens")):  # 5.0 is 5 to Python
            raise ValueError("totals are not whole numbers")
        if type(fields["vocab_size"]) is not int or not 0 < fields["vocab_size"] <= 1 << 32:
            raise ValueError(f"vocab_size is {fields['vocab_size']!r}")
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("two shards have the same name")
        lengths = [_whole(entry["lengths"], entry["name"]) for entry in value["shards"]]
        offsets = [_whole(entry["offsets"], entry["name"]) for entry in value["shards"]]
        unit = id_dtype(fields["vocab_size"]).itemsize
        for shard, n, at in zip(shards, lengths, offsets, strict=True):
            consistent = (
                len(n) == len(at) == shard.samples > 0
                and (n >= 0).all()
                and int(n.sum()) == shard.tokens
                and at[0] == 0
                and at[-1] < shard.bytes
                and (np.diff(at) > 0).all()
                and (at % BLOCK == 0).all()
                and (n <= np.diff(at, append=np.int64(shard.bytes)) // unit).all()
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


def _whole(values: Any, name: str) -> np.ndarray:
    """int64 [n]; numpy would take 1.5 and "3" for whole numbers."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"lengths or offsets of {name} are not whole numbers")
    return array.astype(np.int64)


def read_sample(index: ShardIndex, i: int) -> np.ndarray:
    """The ids of sample `i`, unsigned integers [lengths[i]] in the dtype they are stored in.

    Reads the bytes of this sample alone and unpickles nothing. Raises ShardError naming shard and key.
    """
    return _sample(index, i)[1].ids


def read_metadata(index: ShardIndex, i: int) -> dict[str, Any]:
    """Where sample `i` came from: {"source": file, "row": number in it}. Raises ShardError."""
    where, sample = _sample(index, i)
    try:
        value = json.loads(sample.metadata)
    except ValueError as e:
        raise ShardError(f"{where}.json: not valid JSON ({e}). {AGAIN}") from e
    if not isinstance(value, dict):
        raise ShardError(f"{where}.json: expected an object, got {type(value).__name__}. {AGAIN}")
    return value


def _sample(index: ShardIndex, i: int) -> tuple[str, Sample]:
    """Sample `i`, and "shard, key" for errors."""
    if not 0 <= i < index.samples:
        raise IndexError(f"sample {i} of {index.samples}")
    shard = index.shards[int(index.shard_of_sample[i])]
    path, key = index.folder / shard.name, sample_key(i)
    where = f"shard {path}, key {key}"
    last = i + 1 == shard.first + shard.samples
    start = int(index.offsets[i])
    end = shard.bytes if last else int(index.offsets[i + 1])
    if isinstance(path, Address):
        raise ShardError(f"{where}: single samples are only read from local shards.")
    try:
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(end - start)
    except OSError as e:
        raise ShardError(f"{where}: cannot be read ({describe(e)}). Copy the shard again.") from e
    return where, parse_sample(content, where, key, start, int(index.lengths[i]), index.vocab_size, last)
