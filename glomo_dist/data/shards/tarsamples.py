"""Samples in the bytes of a shard: each is two members of the tar file, KEY.json and KEY.npy, and nothing else.

`parse_sample` checks one sample and says what is wrong with it; `parse_samples` checks thousands at once and hands
what it does not recognise to the other. Nothing is unpickled or extracted: names are compared, sizes are bounded by
the index, ids are taken where they lie.
"""

from __future__ import annotations

import io
import tarfile
from typing import NamedTuple

import numpy as np

from glomo_dist.data.storage.npy import read_header
from glomo_dist.runtime.errors import ShardError

BLOCK = tarfile.BLOCKSIZE
AGAIN = "The shard is damaged: copy it again, or prepare the data again."
_HEADER = 128  # bytes of the head of a .npy file as numpy writes it for one dimension


def sample_key(sample: int) -> str:
    """Name of sample number `sample` (over all shards) inside its tar file."""
    return f"{sample:09d}"


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id: the one they are stored in."""
    return np.min_scalar_type(vocab_size - 1)


class Sample(NamedTuple):
    """metadata: JSON as it is stored; ids [n], unsigned."""

    metadata: bytes
    ids: np.ndarray


def parse_sample(
    content: bytes, where: str, key: str, at: int, length: int, vocab_size: int, last: bool
) -> Sample:
    """The sample in `content`, the bytes of a shard from its first header to the next sample's.

    where: "shard ..., key ...", for errors.  at: place of `content` in the shard.  length: of the ids.
    last: it is the shard's last one, behind which zeros fill the file. Raises ShardError.
    """
    members: dict[str, bytes] = {}
    position = 0
    for ending in ("json", "npy"):  # the order in which webdataset writes them
        header = content[position : position + BLOCK]
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as e:
            begins = f"begins with {header[:16]!r}" if header else "the file ends there"
            raise ShardError(
                f"{where}: byte {at + position} is not a tar header ({e}; {begins}). {AGAIN}"
            ) from e
        if member.name != f"{key}.{ending}" or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = "" if member.isreg() else f", which is no file (type {member.type!r})"
            raise ShardError(f"{where}: expected the file {key}.{ending}, got {member.name!r}{kind}. {AGAIN}")
        position += BLOCK
        members[ending] = content[position : position + member.size]
        if len(members[ending]) != member.size:
            raise ShardError(
                f"{where}.{ending}: the shard ends inside it, or it is larger than the index says. {AGAIN}"
            )
        position += -(-member.size // BLOCK) * BLOCK
    if (position != len(content)) if not last else content[position:].strip(b"\0"):
        raise ShardError(
            f"{where}: something that is not in the index follows at byte {at + position} (an extra member?). {AGAIN}"
        )
    return Sample(members["json"], _ids(members["npy"], f"{where}.npy", length, vocab_size))


def _ids(content: bytes, where: str, length: int, vocab_size: int) -> np.ndarray:
    array = io.BytesIO(content)
    try:
        shape, dtype = read_header(array)
    except ValueError as e:
        raise ShardError(f"{where}: not a plain numpy array ({e}). {AGAIN}") from e
    if dtype.kind != "u" or len(shape) != 1:
        raise ShardError(f"{where}: expected unsigned integers [n], got {dtype} {list(shape)}. {AGAIN}")
    if dtype != id_dtype(vocab_size):
        raise ShardError(
            f"{where}: expected {id_dtype(vocab_size)}, the smallest for {vocab_size} ids, got {dtype}. {AGAIN}"
        )
    if shape[0] != length:
        raise ShardError(f"{where}: {shape[0]} units, the index says {length}. {AGAIN}")
    if (left := len(content) - array.tell()) != shape[0] * dtype.itemsize:
        raise ShardError(f"{where}: {left} bytes of ids, {shape[0]} {dtype} were promised. {AGAIN}")
    ids = np.frombuffer(content, dtype, offset=array.tell())
    _require_known(ids, where, vocab_size)
    return ids


def _require_known(ids: np.ndarray, where: str, vocab_size: int) -> None:
    if len(ids) and (largest := int(ids.max())) >= vocab_size:
        raise ShardError(f"{where}: id {largest} is outside the vocabulary of {vocab_size}. {AGAIN}")


def parse_samples(
    content: bytes, shard: str, first: int, offsets: np.ndarray, lengths: np.ndarray, vocab_size: int,
    at: int, last: bool,
) -> np.ndarray:  # fmt: skip
    """The ids of consecutive samples end to end, in the dtype they are stored in.

    content: the bytes of the shard from the first sample to behind the last one.  shard: its place, for errors.
    first: number of the first sample.  offsets, lengths: int64 [n], the former in `content`.
    at: place of `content` in the shard.  last: it goes to the shard's end. Raises ShardError naming shard and key.
    """
    ends = np.append(offsets[1:], len(content))
    plain, begins = _recognise(content, first, offsets, lengths, ends, vocab_size, last)
    dtype = id_dtype(vocab_size)
    parts = []
    for i, (good, begin, length) in enumerate(
        zip(plain.tolist(), begins.tolist(), lengths.tolist(), strict=True)
    ):
        if good:
            parts.append(np.frombuffer(content, dtype, length, begin))
            continue
        key, start = sample_key(first + i), int(offsets[i])
        sample = parse_sample(
            content[start : ends[i]], f"shard {shard}, key {key}", key, at + start, length, vocab_size,
            last and i == len(lengths) - 1,
        )  # fmt: skip
        parts.append(sample.ids)
    ids = np.concatenate(parts)
    if len(ids) and int(ids.max()) >= vocab_size:
        for i, part in enumerate(parts):
            _require_known(part, f"shard {shard}, key {sample_key(first + i)}.npy", vocab_size)
    return ids


def _recognise(
    content: bytes, first: int, offsets: np.ndarray, lengths: np.ndarray, ends: np.ndarray, vocab_size: int,
    last: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Which samples are exactly as our writer makes them, and where their ids begin; never True for any other."""
    blocks = np.frombuffer(content, np.uint8, len(content) // BLOCK * BLOCK).reshape(-1, BLOCK)
    if not len(blocks):
        return np.zeros(len(offsets), bool), offsets
    keys = [sample_key(first + i) for i in range(len(offsets))]
    good, sizes = _headers(blocks, offsets, [f"{key}.json" for key in keys])
    arrays = offsets + BLOCK + -(-sizes // BLOCK) * BLOCK
    there, array_sizes = _headers(blocks, arrays, [f"{key}.npy" for key in keys])
    heads = np.minimum(arrays + BLOCK, len(content) - 1) // BLOCK
    written = blocks[np.minimum(heads, len(blocks) - 1), :_HEADER].copy().view(f"S{_HEADER}")[:, 0]
    dtype = id_dtype(vocab_size)
    texts = {
        n: f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({n},), }}"
        for n in set(lengths.tolist())
    }
    magic = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    expected = {n: magic + text.ljust(_HEADER - 11).encode() + b"\n" for n, text in texts.items()}
    good &= there & (written == np.array([expected[n] for n in lengths.tolist()], f"S{_HEADER}"))
    good &= array_sizes == _HEADER + lengths * dtype.itemsize
    behind = arrays + BLOCK + -(-array_sizes // BLOCK) * BLOCK
    inner = len(offsets) - 1 if last else len(offsets)
    good[:inner] &= behind[:inner] == ends[:inner]
    if last and good[-1]:
        good[-1] = behind[-1] <= len(content) and not content[int(behind[-1]) :].strip(b"\0")
    return good, arrays + BLOCK + _HEADER


def _headers(blocks: np.ndarray, at: np.ndarray, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Whether a whole, ordinary header of the file `names[i]` is at byte `at[i]`, and the file's size (else 0)."""
    number = at // BLOCK
    inside = (number < len(blocks)) & (at % BLOCK == 0)
    headers = blocks[np.where(inside, number, 0)]
    found = np.ascontiguousarray(headers[:, :100]).view("S100")[:, 0]
    good = inside & (found == np.array([name.encode() for name in names], "S100"))
    good &= (headers[:, 156] == ord("0")) | (headers[:, 156] == 0)
    good &= ~headers[:, 345:500].any(axis=1)  # no longer name
    total = headers.sum(axis=1, dtype=np.int64) - headers[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * 32
    plain_sum, checksum = _octal(headers[:, 148:154])
    plain_size, size = _octal(headers[:, 124:135])
    good &= plain_sum & plain_size & (checksum == total) & (headers[:, 135] == 0)
    good &= (headers[:, 154] == 0) & (headers[:, 155] == 32)  # the checksum's own end is not summed
    return good, np.where(good, size, 0)


def _octal(digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is octal digits only, and their value. digits uint8 [n, width]"""
    values = digits.astype(np.int64) - ord("0")
    plain = np.all((values >= 0) & (values < 8), axis=1)
    return plain, (values * 8 ** np.arange(digits.shape[1] - 1, -1, -1)).sum(axis=1)
