"""Images that are damaged, promise too much, or are something else."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_samples import GREY, RANDOM, encoded, pixels
from PIL import Image

from glomo_dist.data.storage.npy import read_header
from glomo_dist.runtime.errors import DataError

BAD = np.full((3, 2, 2), 0.5, np.float32)


def changed(index: tuple[int, ...], value: float) -> np.ndarray:
    images = BAD.copy()
    images[index] = value
    return images


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": changed((1, 0, 1), np.nan)}, r"image 1: nan at pixel \[0, 1\]"),
        ({"images": changed((2, 1, 0), np.inf)}, r"image 2: inf at pixel \[1, 0\]"),
        ({"images": changed((2, 1, 0), 255.0)}, r"image 2: float pixels must be from 0 to 1, got 0.5 to 255"),
        (
            {"images": changed((0, 1, 1), -0.25)},
            r"image 0: float pixels must be from 0 to 1, got -0.25 to 0.5",
        ),
        ({"images": BAD.astype(np.int64)}, "expected uint8, or floats from 0 to 1, got int64"),
        ({"images": BAD[0]}, r"expected shape \[n, H, W\].*got \[2, 2\]"),
        ({"images": np.zeros((2, 3, 3, 2), np.uint8)}, r"got \[2, 3, 3, 2\]"),
        ({"images": np.zeros((2, 0, 3), np.uint8)}, r"got \[2, 0, 3\]"),
        ({"images": np.asfortranarray(BAD)}, "Fortran order"),
        ({"images": np.zeros((0, 2, 2), np.uint8)}, "has no image in it"),
        ({"pictures": BAD}, r"has the members \['pictures\.npy'\]; expected 'images\.npy'"),
        ({"jpeg": BAD}, r"has the members \['jpeg\.npy'\]; expected 'images\.npy'"),
        ({"jpeg": BAD, "offset": BAD}, "expected 'jpeg' uint8"),
        ({"jpeg": GREY.ravel(), "offset": np.array([0, 60, 60, 120])}, "'offset' must rise from 0 to 120"),
        ({"jpeg": GREY.ravel(), "offset": np.array([0, 90, 60, 120], np.uint64)}, "must rise from 0 to 120"),
        ({"jpeg": GREY.ravel(), "offset": np.zeros(0, np.int64)}, "got 0 entries, nothing"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        pixels(tmp_path / "a.npz")
    assert "a.npz" in str(error.value)


def head_of(version: bytes, fields: str) -> io.BytesIO:
    """The head of a .npy file, its length in two bytes in version 1 and in four in version 2."""
    text = f"{{{fields}, }}\n".encode()
    return io.BytesIO(b"\x93NUMPY" + version + len(text).to_bytes(2 * version[0], "little") + text)


def test_heads_of_arrays() -> None:
    fields = "'descr': '<f4', 'fortran_order': {}, 'shape': ({})"
    for version in (b"\1\0", b"\2\0"):
        head = head_of(version, fields.format(True, "5,"))  # a row is in either order
        assert read_header(head) == ((5,), np.dtype("<f4"))
    for fortran, shape, message in ((True, "2, 5", "Fortran"), (False, "-5,", "negative size")):
        with pytest.raises(ValueError, match=message):
            read_header(head_of(b"\1\0", fields.format(fortran, shape)))
    with pytest.raises(ValueError, match=r"version 3\.0 is not read here"):
        read_header(head_of(b"\3\0", fields.format(False, "5,")))
    with pytest.raises(ValueError, match="unpickled"):
        read_header(head_of(b"\1\0", "'descr': [('a', '|O')], 'fortran_order': False, 'shape': (5,)"))
    with pytest.raises(ValueError, match="large") as error:  # numpy says why in several lines
        read_header(head_of(b"\1\0", f"{fields.format(False, '5,')}{' ' * 20_000}"))
    assert "\n" not in str(error.value)


def test_archives_that_zipfile_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    array = io.BytesIO()
    np.save(array, GREY)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", array.getvalue())
    with pytest.raises(DataError, match=r"a\.npz has the members \['images'\]; expected 'images\.npy'"):
        pixels(path)
    np.savez(path, images=GREY)
    whole = path.read_bytes()
    local, central = whole.index(b"PK\3\4"), whole.index(b"PK\1\2")
    for at, value, message in ((6, 1, "encrypted"), (8, 99, "compression")):  # flags and method of a member
        changed = bytearray(whole)
        changed[local + at] = changed[central + at + 2] = value
        path.write_bytes(changed)
        with pytest.raises(DataError, match=rf"a\.npz cannot be unpacked: .*{message}.*numpy\.savez"):
            pixels(path)
    for head, flags, name in ((central, 8, 46), (local, 6, 30)):  # a name that is said to be UTF-8
        changed = bytearray(whole)
        changed[head + flags + 1], changed[head + name] = 8, 0xFF
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"a\.npz is not a whole \.npz file: .*utf-8.*Copy it again"):
            pixels(path)


@pytest.mark.parametrize(
    "height, width, message",
    [
        (0xFFFFFFFF, 0xFFFFFFFF, "image 0: the file ends early, 1 images were promised"),
        (0x7FFFFFFF, 0x7FFFFFFF, "image 0: the file ends early"),
        (0, 5, "promises images of 0 x 5"),
        (5, 0, "promises images of 5 x 0"),
    ],
)
def test_idx_files_that_promise_too_much(tmp_path: Path, height: int, width: int, message: str) -> None:
    (tmp_path / "a-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 1, height, width) + bytes(100))
    with pytest.raises(DataError, match=f"a-ubyte.*{message}"):
        pixels(tmp_path / "a-ubyte")


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("jpeg", (10**15,), "array 'jpeg': 1,000,000,000,000,000 bytes were promised, 100 are there"),
        ("jpeg", (-3,), "array 'jpeg': .*the shape .* negative"),
        ("images", (1, 2**40, 2**40), "image 0: the array ends early"),
        ("images", (1, -3, 4), "array 'images': .*the shape .* negative"),
    ],
)
def test_arrays_that_promise_too_much(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(f"{name}.npy", head.getvalue() + bytes(100))
        archive.writestr("offset.npy", head.getvalue() + bytes(100))
    with pytest.raises(DataError, match=rf"a\.npz, {message}"):
        pixels(tmp_path / "a.npz")


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match=r"a\.npz, array 'images'"):
        pixels(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", jpeg=np.array([{"a": 1}], object), offset=np.array([0, 1]))
    with pytest.raises(DataError, match=r"a\.npz, array 'jpeg'"):
        pixels(tmp_path / "a.npz")


def test_what_a_file_is_called_starts_no_other_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would have Ghostscript run the one, and ends in errors of its own with the other."""
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: started.append("gs") or True)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    texture = b"DDS " + (124).to_bytes(4, "little") + bytes(120)
    for content in (postscript, texture):
        (tmp_path / "cat.png").write_bytes(content)
        with pytest.raises(
            DataError, match=r"cat\.png is not a whole image of the formats PNG, JPEG, .*Replace"
        ):
            pixels(tmp_path / "cat.png")
    assert not started


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RANDOM.integers(0, 256, (64, 64), dtype=np.uint8))[:-200])
    with pytest.raises(DataError, match=r"a\.png is not a whole image"):
        pixels(tmp_path / "a.png")
    shorter = bytearray(encoded(RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)))
    data = shorter.index(b"IDAT")
    shorter[data - 4 : data] = (500).to_bytes(4, "big")  # its length: no chunk begins where it ends
    (tmp_path / "a.png").write_bytes(shorter)
    with pytest.raises(DataError, match=r"a\.png is not a whole image: .*broken PNG"):
        pixels(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png is not a whole image"):
        pixels(tmp_path / "a.png")
    np.savez(tmp_path / "b.npz", images=GREY)
    (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"b\.npz is not a whole \.npz file"):
        pixels(tmp_path / "b.npz")
    np.savez_compressed(tmp_path / "b.npz", images=GREY)
    deflated = bytearray((tmp_path / "b.npz").read_bytes())
    first = deflated.index(b"images.npy") + 40
    deflated[first : first + 30] = b"\xff" * 30
    (tmp_path / "b.npz").write_bytes(deflated)
    with pytest.raises(DataError, match=r"b\.npz is not a whole \.npz file"):
        pixels(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", images=GREY)
    longer = bytearray((tmp_path / "b.npz").read_bytes().replace(b"(5, 4, 6), }   ", b"(5000, 4, 6), }"))
    central = longer.index(b"PK\1\2")
    # its sizes: more than the file has, which some releases of Python find before they read
    longer[central + 20 : central + 28] = struct.pack("<II", 1 << 20, 1 << 20)
    (tmp_path / "b.npz").write_bytes(longer)
    with pytest.raises(
        DataError, match=r"b\.npz is not a whole \.npz file: (EOFError|BadZipFile: Overlapped)"
    ):
        pixels(tmp_path / "b.npz")
    (tmp_path / "d-ubyte").write_bytes(bytes((0, 0, 8, 3, 0, 0, 0, 1, 0)))
    with pytest.raises(DataError, match=r"d-ubyte ends in its header"):
        pixels(tmp_path / "d-ubyte")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"c\.png: pixels of more than 8 bits"):
        pixels(tmp_path / "c.png")


ASCII, LONG8 = 2, 16  # kinds of numbers in a TIFF


def tiff_at(kind: int) -> bytes:
    """A TIFF of 2 x 2 grey pixels. kind: of the number that says where they begin; all of its bytes are 255."""
    after = 10 + 8 * 12 + 4  # the header, the tags, and that there are no more
    tags = {
        256: (3, 2), 257: (3, 2), 258: (3, 8), 262: (3, 1), 273: (kind, after if kind == LONG8 else 0xFFFFFFFF),
        277: (3, 1), 278: (3, 2), 279: (4, 4),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, of, 1, value) for tag, (of, value) in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + b"\xff" * 8


@pytest.mark.parametrize(
    "content, why",
    [
        (b"P6 20000 20000 255\n", "DecompressionBombError"),
        (b"P3 1 1 255\nx 1 2\n", "ValueError"),
        (tiff_at(ASCII), "TypeError"),
        (tiff_at(LONG8), "OverflowError"),
    ],
)
def test_images_that_pillow_refuses_are_named(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.ppm").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.ppm is not a whole image: {why}: .*Replace or remove it"):
        pixels(tmp_path / "a.ppm")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_archives_of_every_compression_are_named(tmp_path: Path, method: int) -> None:
    path, array = tmp_path / "a.npz", io.BytesIO()
    np.save(array, RANDOM.integers(0, 256, (20, 8, 8), dtype=np.uint8))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images.npy", array.getvalue())
    whole = path.read_bytes()
    assert len(pixels(path)) == 20
    for places in [(len(whole) // 3, len(whole) // 2), *((at,) for at in range(60, len(whole) - 150, 60))]:
        damaged = bytearray(whole)
        for at in places:
            damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.npz"):
            pixels(path)
