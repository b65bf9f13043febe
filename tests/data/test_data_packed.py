"""Packed files: cut ones, several streams end to end, zeros between them."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import pytest
from document_samples import PACK, texts

from glomo_dist.runtime.errors import DataError


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_cut_packed_file_is_an_error_that_names_it(tmp_path: Path, packing: str) -> None:
    rows = b"".join(json.dumps({"text": os.urandom(50).hex()}).encode() + b"\n" for _ in range(2000))
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](rows)[:-100])
    with pytest.raises(DataError, match=rf"a\.jsonl\{packing} cannot be read.*copy it again"):
        texts(path)
    path.write_bytes(b"this was never packed")
    with pytest.raises(DataError, match=rf"a\.jsonl\{packing} cannot be read"):
        texts(path)


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
