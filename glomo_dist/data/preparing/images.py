"""Images from folders of image files, `.npz` archives (arrays or JPEG streams), MNIST's and CIFAR-10's own files."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from glomo_dist.data.preparing.cifar import cifar_images
from glomo_dist.data.preparing.encoded import decoded
from glomo_dist.data.storage.files import InputFile, find_files
from glomo_dist.data.storage.npy import read_header, read_up_to
from glomo_dist.data.storage.packed import open_seekable, open_stream
from glomo_dist.runtime.config import whole
from glomo_dist.runtime.errors import ConfigError, DataError, describe

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, ".npz", "-ubyte", ".bin")
MOST_PIXELS = 1 << 26  # of a resized image; what is read, Pillow limits
_IDX_UBYTE = 0x08  # third byte of an idx file: its element type; the fourth is the number of dimensions


@dataclass(frozen=True)
class Picture:
    """One image, uint8 [H, W] or [H, W, 3], and where it came from (row: its number in the file)."""

    pixels: np.ndarray
    source: str
    row: int
    where: str  # file and number as errors name them


def pictures(
    sources: Iterable[str | Path],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[Picture]:
    """All images of `sources`, in a stable order, read as a stream.

    sources: image files, `.npz`, idx files (`*-ubyte`, label files in a folder are skipped), binary batches of
        CIFAR-10 (`.bin`); each also packed.
    size: (height, width) to resize to, bicubic; None keeps the size.
    channels: 1 or 3 to convert to; None keeps what each image has.
    left_out: counts the files that are none of these (see `find_files`).

    Raises DataError naming file and image for what cannot be decoded, is not uint8 or in 0..1, or not finite.
    """
    if channels not in (None, 1, 3) or isinstance(channels, bool):
        raise ConfigError(f"channels must be 1 (grey) or 3 (colour), got {channels}.")
    if size is not None:
        if len(size) != 2:
            raise ConfigError(f"size must be (height, width), got {size}.")
        size = whole("height of size", size[0], 1), whole("width of size", size[1], 1)
        if size[0] * size[1] > MOST_PIXELS:
            raise ConfigError(f"size must be of {MOST_PIXELS:,} pixels at most, got {size[0]} x {size[1]}.")
    return _pictures(find_files(sources, IMAGE_SUFFIXES, left_out), size, channels)


def _pictures(
    files: list[InputFile], size: tuple[int, int] | None, channels: int | None
) -> Iterator[Picture]:
    for file in files:
        count = 0
        for picture in _of_file(file):
            count += 1
            yield _converted(picture, size, channels)
        if not count and file.suffix != "-ubyte":
            raise DataError(f"{file.name} has no image in it. Remove it from the inputs.")


def _of_file(file: InputFile) -> Iterator[Picture]:
    if file.suffix == "-ubyte":
        return _idx(file)
    if file.suffix == ".bin":
        return _batch(file)
    return _archive(file) if file.suffix == ".npz" else _picture_file(file)


def _picture_file(file: InputFile) -> Iterator[Picture]:
    with open_stream(file) as stream:
        content = stream.read()
    yield Picture(decoded(content, file.name), file.label, 0, file.name)


def encoded_picture(content: bytes, where: str, channels: int) -> np.ndarray:
    """uint8 [H, W] (channels 1) or [H, W, 3] of one encoded image; raises DataError naming `where`."""
    return _converted(Picture(decoded(content, where), "", 0, where), None, channels).pixels


def _converted(picture: Picture, size: tuple[int, int] | None, channels: int | None) -> Picture:
    pixels = picture.pixels
    colour = pixels.ndim == 3
    resize = size is not None and pixels.shape[:2] != size
    convert = channels is not None and colour != (channels == 3)
    if not resize and not convert:
        return picture
    image = Image.fromarray(pixels)
    if convert:
        image = image.convert("RGB" if channels == 3 else "L")
    if resize and size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return replace(picture, pixels=np.asarray(image))


def _archive(file: InputFile) -> Iterator[Picture]:
    with open_seekable(file) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = set(archive.namelist())
                if "images.npy" in members:
                    yield from _array(archive, file)
                elif {"jpeg.npy", "offset.npy"} <= members:
                    yield from _jpeg(archive, file)
                else:
                    raise DataError(
                        f"{file.name} has the members {sorted(members)}; expected 'images.npy' (uint8 [n, H, W] or "
                        "[n, H, W, C]), or 'jpeg.npy' and 'offset.npy'. Save the arrays with numpy.savez under "
                        "the names images, or jpeg and offset."
                    )
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, UnicodeDecodeError) as e:
            raise DataError(f"{file.name} is not a whole .npz file: {describe(e)}. Copy it again.") from e
        except RuntimeError as e:  # what zipfile raises for a password or a compression that it does not know
            raise DataError(
                f"{file.name} cannot be unpacked: {describe(e)}. Save it again with numpy.savez."
            ) from e


def _array(archive: zipfile.ZipFile, file: InputFile) -> Iterator[Picture]:
    """Images of the array `images`, a few megabytes at a time: it may be larger than memory."""
    with archive.open("images.npy") as stream:
        try:
            shape, dtype = read_header(stream)
        except ValueError as e:
            raise DataError(f"{file.name}, array 'images': {describe(e)}.") from e
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape[1:]:
            raise DataError(
                f"{file.name}, array 'images': expected shape [n, H, W] or [n, H, W, C] with C 1 or 3, got "
                f"{list(shape)}."
            )
        if dtype != np.uint8 and dtype.kind != "f":
            raise DataError(
                f"{file.name}, array 'images': expected uint8, or floats from 0 to 1, got {dtype}. Convert it."
            )
        item = math.prod(shape[1:]) * dtype.itemsize
        for index in range(shape[0]):
            where = f"{file.name}, image {index}"
            content = read_up_to(stream, item)
            if len(content) != item:
                raise DataError(f"{where}: the array ends early. Copy the file again.")
            image = np.frombuffer(content, dtype).reshape(shape[1:])
            pixels = image if dtype == np.uint8 else _from_unit_range(image, where)
            yield Picture(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels, file.label, index, where)
        if stream.read(1):  # this also checks the member's CRC
            raise DataError(
                f"{file.name}, array 'images': it goes on after the {shape[0]} images that its header tells of. "
                "Copy the file again."
            )


def _from_unit_range(image: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(image).all():
        at = [int(i) for i in np.argwhere(~np.isfinite(image))[0]]
        raise DataError(f"{where}: {image[tuple(at)]} at pixel {at}. Repair or remove the image.")
    if image.min() < 0 or image.max() > 1:
        raise DataError(
            f"{where}: float pixels must be from 0 to 1, got {image.min():g} to {image.max():g}. Scale them."
        )
    return np.round(image * 255).astype(np.uint8)


def _jpeg(archive: zipfile.ZipFile, file: InputFile) -> Iterator[Picture]:
    """Image i is jpeg[offset[i] : offset[i + 1]]: image streams end to end, with n + 1 offsets."""
    jpeg, offset = (_whole_array(archive, name, file) for name in ("jpeg", "offset"))
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or offset.ndim != 1 or offset.dtype.kind not in "iu":
        raise DataError(
            f"{file.name}: expected 'jpeg' uint8 [bytes] and 'offset' integer [n + 1], got "
            f"{jpeg.dtype} {list(jpeg.shape)} and {offset.dtype} {list(offset.shape)}."
        )
    if (
        len(offset) < 2
        or offset[0] != 0
        or offset[-1] != len(jpeg)
        or (np.diff(offset.astype(np.int64)) <= 0).any()
    ):
        found = f"{offset[0]} to {offset[-1]}" if len(offset) else "nothing"
        raise DataError(
            f"{file.name}: 'offset' must rise from 0 to {len(jpeg)}, the length of 'jpeg', with n + 1 entries for n "
            f"images; got {len(offset)} entries, {found}. Add what is missing, or copy the file again."
        )
    for index in range(len(offset) - 1):
        where = f"{file.name}, image {index}"
        content = jpeg[offset[index] : offset[index + 1]].tobytes()
        yield Picture(decoded(content, where), file.label, index, where)


def _whole_array(archive: zipfile.ZipFile, name: str, file: InputFile) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        try:
            shape, dtype = read_header(stream)
            size = math.prod(shape) * dtype.itemsize
            content = read_up_to(stream, size)
            if len(content) < size:
                raise DataError(
                    f"{file.name}, array {name!r}: {size:,} bytes were promised, {len(content):,} are there. "
                    "Copy it again."
                )
            return np.frombuffer(content, dtype).reshape(shape)
        except ValueError as e:
            raise DataError(
                f"{file.name}, array {name!r}: {describe(e)}. Save it again with numpy.savez."
            ) from e


def _batch(file: InputFile) -> Iterator[Picture]:
    for index, (pixels, _) in enumerate(cifar_images(file)):
        yield Picture(pixels, file.label, index, f"{file.name}, image {index}")


def _idx(file: InputFile) -> Iterator[Picture]:
    """Images of an idx file: bytes 0 0 type dimensions, big-endian sizes, then the pixels (MNIST's format)."""
    with open_stream(file) as stream:
        head = stream.read(4)
        if len(head) < 4 or head[:3] != bytes((0, 0, _IDX_UBYTE)):
            raise DataError(
                f"{file.name} is not an idx file of bytes (it begins with {head!r}). Copy it again, or leave it out."
            )
        if head[3] == 1 and not file.outright:
            return  # the labels beside the images
        if head[3] != 3:
            raise DataError(f"{file.name}: expected images (3 dimensions), got {head[3]} (1 means labels).")
        sizes = stream.read(12)
        if len(sizes) < 12:
            raise DataError(f"{file.name} ends in its header. Copy it again.")
        n, height, width = struct.unpack(">III", sizes)
        if not height or not width:
            raise DataError(f"{file.name}: its header promises images of {height} x {width}. Copy it again.")
        for index in range(n):
            where = f"{file.name}, image {index}"
            content = read_up_to(stream, height * width)
            if len(content) != height * width:
                raise DataError(f"{where}: the file ends early, {n} images were promised. Copy it again.")
            yield Picture(np.frombuffer(content, np.uint8).reshape(height, width), file.label, index, where)
        if stream.read(1):
            raise DataError(
                f"{file.name} goes on after the {n} images of {height} x {width} that its header promises. "
                "Copy it again."
            )
