"""Transparent images as a viewer shows them: on white, in every way that a file can say what is not to be seen."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from image_samples import pixels
from PIL import Image


def test_turned_transparent_images_are_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    shown = Image.fromarray(np.array([[0, 0, 1], [0, 0, 0]], np.uint8))
    shown.putpalette([0, 0, 0, 0, 0, 0])
    shown.save(tmp_path / "a.png", transparency=b"\0\xff", exif=exif)
    (image,) = pixels(tmp_path / "a.png")
    assert image[..., 0].tolist() == [[255, 255], [255, 255], [255, 0]]


def test_transparent_images_are_on_white(tmp_path: Path) -> None:
    """A black logo of one pixel, on black that is not to be seen."""
    alpha = np.zeros((4, 6), np.uint8)
    alpha[1, 2], alpha[3, 5] = 255, 102
    logo = np.where(alpha == 255, 0, 255)
    logo[3, 5] = 153
    black = np.zeros((4, 6, 3), np.uint8)
    Image.fromarray(np.dstack([black, alpha])).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([black[..., 0], alpha])).save(tmp_path / "b.png")
    Image.fromarray(np.dstack([black, alpha])).save(tmp_path / "c.webp", lossless=True)
    colour, grey, webp = pixels(tmp_path)
    assert (colour == logo[..., None]).all() and (grey == logo).all() and (webp == colour).all()
    shown = Image.fromarray((alpha == 255).astype(np.uint8))
    shown.putpalette([0, 0, 0, 0, 0, 0])
    (tmp_path / "more").mkdir()
    shown.save(tmp_path / "more" / "a.png", transparency=b"\0\xff")
    shown.save(tmp_path / "more" / "b.gif", transparency=0)
    Image.fromarray((alpha < 255).astype(np.uint8)).save(tmp_path / "more" / "c.png", transparency=1)
    for image in pixels(tmp_path / "more"):
        assert (image.reshape(4, 6, -1)[..., 0] == np.where(alpha == 255, 0, 255)).all()


def test_transparent_tiff_images_are_on_white(tmp_path: Path) -> None:
    """Black, half of black, nothing: in a palette, in grey, and in grey that is stored times its opacity."""
    opacity = np.array([[255, 102, 0]], np.uint8)
    pair = np.dstack([np.zeros_like(opacity), opacity])
    palette = Image.frombytes("PA", (3, 1), pair.tobytes())
    palette.putpalette([0, 0, 0])
    palette.save(tmp_path / "a.tif")
    Image.fromarray(pair).save(tmp_path / "b.tif")
    extra, of_their_own, times_opacity = 338, 2, 1  # the tag of what a sample has beside its colours
    content = (tmp_path / "b.tif").read_bytes()
    before = struct.pack("<HHIH", extra, 3, 1, of_their_own)
    assert content.count(before) == 1
    (tmp_path / "c.tif").write_bytes(
        content.replace(before, struct.pack("<HHIH", extra, 3, 1, times_opacity))
    )
    for image, shape in zip(pixels(tmp_path), [(1, 3, 3), (1, 3), (1, 3)], strict=True):
        assert image.shape == shape and image.reshape(3, -1)[:, 0].tolist() == [0, 153, 255]
