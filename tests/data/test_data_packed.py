"""Packed files: cut ones, several streams end to end, zeros between them."""

from __future__ import annotations

import io
import json
import lzma
import os
from pathlib import Path

import pytest
from document_samples import PACK, texts

from glomo_dist.data.storage.packed import _Frames
from glomo_dist.runtime.errors import DataError


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_cut_packed_file_is_an_error_that_names_it(tmp_path: Path, packing: str) -> None:
    rows = b"".join(json.dumps({"text": os.urandom(50).hex()}).encode() + b"\n" for _ in range(2000))
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](rows)[:-100])
    with pytest.raises(DataError, match=rf"a\.jsonl\{packing} cannot be read.*copy it again"):
        texts(path)
    path.write_bytes(b"this was never packed")
    with pytest.raises(DataError, match=rf"a\.jsonl\{packing} cannot be read.*copy it again"):
        texts(path)


def test_a_damaged_block_in_gzip_is_called_damage(tmp_path: Path) -> None:
    packed = bytearray(PACK[".gz"](b"words"))
    packed[10] |= 0b110  # no such kind of block: found before the check at the end
    (tmp_path / "a.txt.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"a\.txt\.gz cannot be read: .*copy it again"):
        texts(tmp_path)


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_several_frames_end_to_end(tmp_path: Path, packing: str) -> None:
    pack, path = PACK[packing], tmp_path / f"a.txt{packing}"
    path.write_bytes(pack(b"one ") + pack(b"") + pack(b"two"))
    assert texts(path) == ["one two"]


@pytest.mark.parametrize("zeros", [4, 8, 1 << 19])
def test_padding_between_xz_streams(tmp_path: Path, zeros: int) -> None:
    path, padding = tmp_path / "a.txt.xz", b"\0" * zeros
    path.write_bytes(lzma.compress(b"one ") + padding + lzma.compress(b"two") + padding)
    assert texts(path) == ["one two"]


class InBlocks(io.BytesIO):
    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self.most = most

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.most)


@pytest.mark.parametrize("most", range(1, 24))
def test_it_does_not_matter_in_which_blocks_the_bytes_come(most: int) -> None:
    """Zeros within a stream are no padding, and padding may come in any number of blocks."""
    contents = [bytes(range(256)) * 40, b"\0" * 1000, b"two"]
    packed = b"".join(lzma.compress(text) + b"\0" * 8 for text in contents)
    frames = _Frames(InBlocks(packed, most), lzma.LZMADecompressor, padding=4)
    parts = list(iter(lambda: bytes(frames.read(100)), b""))
    assert b"".join(parts) == b"".join(contents) and max(map(len, parts)) == 100


def test_zeros_behind_a_zstandard_frame_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(PACK[".zst"](b"one ") + b"\0" * 4)
    with pytest.raises(DataError, match=r"a\.txt\.zst cannot be read.*copy it again"):
        texts(path)


def test_a_zstandard_frame_of_a_long_window(tmp_path: Path) -> None:
    """As `zstd --long=31` makes them; here a head that asks for 256 MB, and a block that is not compressed."""
    block = ((5 << 3) | 1).to_bytes(3, "little") + b"words"
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00\x90" + block)
    assert texts(tmp_path) == ["words"]


@pytest.mark.parametrize("zeros", [1, 4096])
def test_zeros_are_no_xz_file(tmp_path: Path, zeros: int) -> None:
    """A crash may leave a file of the right size and nothing in it."""
    (tmp_path / "a.txt.xz").write_bytes(b"\0" * zeros)
    with pytest.raises(DataError, match=r"a\.txt\.xz cannot be read.*copy it again"):
        texts(tmp_path / "a.txt.xz")


@pytest.mark.parametrize(
    "behind",
    [b"\0\0\0", b"\0" * 5 + lzma.compress(b"two"), b"garbage", b"\0" * 4 + b"garbage", b"\xfd6zXZ\0"],
)
def test_no_xz_stream_behind_another(tmp_path: Path, behind: bytes) -> None:
    """lzma itself takes what it does not know for the end."""
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one ") + behind)
    with pytest.raises(DataError, match=r"a\.txt\.xz cannot be read.*copy it again"):
        texts(path)
