"""Reading images: folders, archives, idx files, and their colours."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_samples import COLOUR, GREY, RANDOM, encoded, pixels
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from glomo_dist.data.preparing import encoded as encoded_module
from glomo_dist.data.preparing.images import pictures
from glomo_dist.runtime.errors import ConfigError, DataError


def idx(images: np.ndarray) -> bytes:
    return struct.pack(">HBBIII", 0, 8, 3, *images.shape) + images.tobytes()


def test_folder_of_images_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_bytes(encoded(GREY[0]))
    (tmp_path / "a.PNG").write_bytes(encoded(GREY[1]))
    (tmp_path / "c.bmp").write_bytes(encoded(COLOUR[0], "BMP"))
    (tmp_path / "labels.csv").write_text("1,2")
    found = list(pictures([str(tmp_path)]))
    assert [p.source for p in found] == ["a.PNG", "b/1.png", "c.bmp"]
    for picture, expected in zip(found, (GREY[1], GREY[0], COLOUR[0]), strict=True):
        assert (picture.pixels == expected).all()


def test_binary_batches_of_cifar10(tmp_path: Path) -> None:
    """Three planes an image, after its label; also packed, and of the published folder all batches."""
    images = RANDOM.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    rows = [bytes((label, *image.transpose(2, 0, 1).ravel())) for label, image in enumerate(images)]
    (tmp_path / "data_batch_1.bin").write_bytes(b"".join(rows[:3]))
    (tmp_path / "data_batch_2.bin.gz").write_bytes(gzip.compress(b"".join(rows[3:])))
    (tmp_path / "batches.meta.txt").write_text("airplane\n")
    found = list(pictures([str(tmp_path)]))
    assert [(p.source, p.row) for p in found[2:4]] == [("data_batch_1.bin", 2), ("data_batch_2.bin.gz", 0)]
    assert (np.stack([p.pixels for p in found]) == images).all()
    (grey, *_) = pixels(tmp_path / "data_batch_1.bin", channels=1, size=(8, 8))
    assert grey.shape == (8, 8)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "0 bytes, expected a multiple of 3073, the size of an image"),
        (bytes(3073 + 5), "3078 bytes, expected a multiple of 3073"),
        (bytes(3073) + b"\x63" + bytes(3072), r"label 99 of image 1 is out of range, expected 0\.\.9"),
    ],
)
def test_what_is_no_batch_of_cifar10(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"model\.bin: {message}.* leave it out"):
        pixels(tmp_path)


def test_resizing_and_converting(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(COLOUR[0]))
    (image,) = pixels(tmp_path / "a.png", size=(8, 3), channels=1)
    grey = Image.fromarray(COLOUR[0]).convert("L")
    assert image.dtype == np.uint8
    assert (image == np.asarray(grey.resize((3, 8), Image.Resampling.BICUBIC))).all()
    (image,) = pixels(tmp_path / "a.png", channels=1)
    assert (image == np.asarray(grey)).all()
    (tmp_path / "b.png").write_bytes(encoded(GREY[0]))
    (image,) = pixels(tmp_path / "b.png", channels=3)
    assert (image == GREY[0][..., None].repeat(3, -1)).all()
    with pytest.raises(ConfigError, match="channels must be 1"):
        pixels(tmp_path / "a.png", channels=2)
    for size in ((10**11, 1), (10**4, 10**4)):
        with pytest.raises(ConfigError, match="size must be of 67,108,864 pixels at most"):
            pixels(tmp_path / "a.png", size=size)
    with pytest.raises(ConfigError, match=r"height of size must be a whole number from 1 to .* got 0"):
        pixels(tmp_path / "a.png", size=(0, 4))


def test_opaque_and_palette_images_keep_their_colours(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = np.stack([grey, grey.T, 255 - grey], -1)
    opaque = np.full((16, 16, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([colour, opaque], -1)).save(tmp_path / "a.png")
    Image.fromarray(np.concatenate([grey[..., None], opaque], -1)).save(tmp_path / "b.png")
    palette = Image.fromarray(colour).convert("P")
    palette.save(tmp_path / "c.png")
    for image, expected in zip(pixels(tmp_path), (colour, grey, palette.convert("RGB")), strict=True):
        assert image.shape == np.shape(expected) and (image == np.asarray(expected)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_images_are_upright_as_the_camera_was_held(tmp_path: Path, kind: str) -> None:
    """EXIF says which side of the stored pixels is up; TIFF was turned before, the others were not."""
    upright = COLOUR[0]
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: np.rot90(upright[:, ::-1], -1), 8: np.rot90(upright, -1),
    }  # fmt: skip
    for orientation, picture in stored.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        options = {"lossless": True} if kind == "WEBP" else {}
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, kind, exif=exif, **options)
        (tmp_path / f"{orientation}.{kind.lower()}").write_bytes(buffer.getvalue())
    for image in pixels(tmp_path):
        assert image.shape == upright.shape and (image == upright).all()


def test_a_warning_of_pillow_names_the_first_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It named a line of Pillow's code only."""
    monkeypatch.setattr(encoded_module, "_WARNED", set())
    for name in ("a.jpg", "b.jpg"):
        exif = b"Exif\0\0II*\0\x08\0\0\0\x07\0\x12\x01"  # seven entries are promised
        Image.fromarray(COLOUR[0]).save(tmp_path / name, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as `python -W error` does
        assert len(list(pictures([str(tmp_path)]))) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(said) == 1 and said[0].startswith(f"WARNING: {tmp_path / 'a.jpg'}: Corrupt EXIF data"), said


@pytest.mark.parametrize("exif", [b"junk", b"Exif\0\0II*\0", None])
def test_a_damaged_note_of_the_camera_is_no_damaged_image(tmp_path: Path, exif: bytes | None) -> None:
    older = PngInfo()
    older.add_text("Raw profile type exif", "\nexif\n4\nno hexadecimal digits")
    form = {"exif": exif} if exif else {"pnginfo": older}
    Image.fromarray(COLOUR[0]).save(tmp_path / "a.png", **form)
    (image,) = pixels(tmp_path / "a.png")
    assert (image == COLOUR[0]).all()


@pytest.mark.parametrize("images", [GREY, COLOUR, GREY[..., None]], ids=["grey", "colour", "one channel"])
def test_npz_arrays(tmp_path: Path, images: np.ndarray) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.arange(5))
    assert (
        np.stack(pixels(tmp_path / "a.npz")) == images.squeeze(-1 if images.shape[3:] == (1,) else ())
    ).all()
    for dtype in (np.float32, np.float64):
        np.savez(tmp_path / "f.npz", images=(np.maximum(images - 0.4, 0) / 255).astype(dtype))
        assert (np.stack(pixels(tmp_path / "f.npz")).ravel() == images.ravel()).all()
    np.savez(tmp_path / "f.npz", images=np.array([[[0.0, 1.0]]]))
    assert [image.tolist() for image in pixels(tmp_path / "f.npz")] == [[[0, 255]]]


def test_npz_whose_header_tells_of_fewer_images(tmp_path: Path) -> None:
    """One bit of a '7' is a '3'; the images are so large that reading 30 of them does not reach the CRC."""
    np.savez(tmp_path / "a.npz", images=np.zeros((70, 64, 64), np.uint8))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content.replace(b"'shape': (70", b"'shape': (30"))
    with pytest.raises(DataError, match=r"a\.npz.*goes on after the 30 images"):
        pixels(tmp_path / "a.npz")


def test_npz_of_jpeg_streams(tmp_path: Path) -> None:
    streams = [encoded(image, "JPEG") for image in COLOUR]
    offset = np.cumsum([0, *map(len, streams)])
    path = tmp_path / "a.npz"
    np.savez(path, jpeg=np.frombuffer(b"".join(streams), np.uint8), offset=offset)
    for image, stream in zip(pixels(path), streams, strict=True):
        assert (image == np.asarray(Image.open(io.BytesIO(stream)))).all()
    np.savez(path, jpeg=np.frombuffer(b"".join(streams)[:-30], np.uint8), offset=offset)
    with pytest.raises(DataError, match="'offset' must rise"):
        pixels(path)
    np.savez(path, jpeg=np.frombuffer(b"".join(streams), np.uint8), offset=offset[:-1])
    with pytest.raises(
        DataError, match=r"a\.npz: 'offset' must rise.* n \+ 1 entries for n images; got 5 entries"
    ):
        pixels(path)
    np.savez(path, jpeg=np.frombuffer(b"".join(streams), np.uint8), offset=offset[1:])
    with pytest.raises(DataError, match="'offset' must rise from 0"):
        pixels(path)
    broken = bytearray(b"".join(streams))
    broken[offset[2] : offset[2] + 20] = b"x" * 20
    np.savez(path, jpeg=np.frombuffer(bytes(broken), np.uint8), offset=offset)
    with pytest.raises(DataError, match=r"a\.npz, image 2 is not a whole image"):
        pixels(path)


def test_idx_files_and_their_labels(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(GREY)))
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 5) + bytes(5)))
    assert (np.stack(pixels(tmp_path)) == GREY).all()
    with pytest.raises(DataError, match=r"labels-idx1-ubyte\.gz: expected images"):
        pixels(labels)
    short = tmp_path / "short-ubyte"
    short.write_bytes(idx(GREY)[:-1])
    with pytest.raises(DataError, match="short-ubyte, image 4: the file ends early, 5 images"):
        pixels(short)
    short.write_bytes(idx(GREY) + b"x")
    with pytest.raises(DataError, match="short-ubyte goes on after the 5 images of 4 x 6"):
        pixels(short)
    short.write_bytes(idx(GREY)[:3])
    with pytest.raises(DataError, match="short-ubyte is not an idx file"):
        pixels(short)
    short.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"not an idx file.*<htm"):
        pixels(short)


def png(kind: int, samples: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel; kind: 2 RGB, 4 LA, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_not_cut(tmp_path: Path, kind: int, channels: int) -> None:
    (tmp_path / "a.png").write_bytes(png(kind, RANDOM.integers(0, 1 << 16, (4, 6, channels))))
    with pytest.raises(DataError, match=r"a\.png: pixels of more than 8 bits \(\w+;16B\)"):
        pixels(tmp_path / "a.png")


def tiff(bits: int, planar: int) -> bytes:
    """4 x 2 black pixels; planar: 1 the colours of each pixel together, 2 one colour after the other."""
    size, strips = bits // 8 * 4 * 2 * 3, {1: 1, 2: 3}[planar]
    places = [8 + size // strips * strip for strip in range(strips)]
    tags = {
        256: [4], 257: [2], 258: [bits] * 3, 259: [1], 262: [2], 273: places, 277: [3], 278: [2],
        279: [size // strips] * strips, 284: [planar],
    }  # fmt: skip
    head, more = struct.pack("<H", len(tags)), b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}I", *values)
        head += struct.pack("<HHI", tag, 4, len(values))
        head += (
            packed if len(values) == 1 else struct.pack("<I", 8 + size + 2 + 12 * len(tags) + 4 + len(more))
        )
        more += packed if len(values) > 1 else b""
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + head + bytes(4) + more


@pytest.mark.parametrize("planar", [1, 2])
def test_bits_of_tiff(tmp_path: Path, planar: int) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(16, planar))
    with pytest.raises(DataError, match=r"a\.tif: pixels of more than 8 bits \(16 a channel\)"):
        pixels(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(tiff(8, planar))
    assert [image.tolist() for image in pixels(tmp_path / "b.tif")] == [np.zeros((2, 4, 3)).tolist()]


def test_bits_of_portable_pixmaps_and_of_bitmaps(tmp_path: Path) -> None:
    deep = (
        (b"P6 1 1 65535\n" + bytes(6), "values to 65535"), (b"P3 1 1 1023\n1 2 3\n", "values to 1023"),
        (b"P6 1 1 256\n" + bytes(6), "values to 256"), (b"Pf\n1 1\n-1.0\n" + bytes(4), "F"),
    )  # fmt: skip
    for content, kind in deep:
        (tmp_path / "a.ppm").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.ppm: pixels of more than 8 bits \({kind}\)"):
            pixels(tmp_path / "a.ppm")
    (tmp_path / "c.ppm").write_bytes(b"P6 1 1 15\n\x0f\x00\x0f")
    (tmp_path / "d.ppm").write_bytes(b"P1 1 1 0\n")
    header = struct.pack("<IiiHHIIiiIIIII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F)
    bitmap = b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + header + struct.pack("<HH", 0xFFFF, 0)
    (tmp_path / "e.bmp").write_bytes(bitmap)  # 5, 6 and 5 bits
    assert [image.ravel().tolist() for image in pixels(tmp_path / "c.ppm")] == [[255, 0, 255]]
    assert [image.ravel().tolist() for image in pixels(tmp_path / "d.ppm")] == [[255]]
    assert [image.ravel().tolist() for image in pixels(tmp_path / "e.bmp")] == [[255, 255, 255]]


def test_shared_images(shared: Path) -> None:
    first = next(pictures([str(shared / "images" / "cifar10_jpeg_test.npz")]))
    assert first.pixels.shape == (32, 32, 3)
    digit = next(pictures([str(shared / "images" / "mnist")]))
    assert digit.pixels.shape == (28, 28) and 20 < digit.pixels.mean() < 60
