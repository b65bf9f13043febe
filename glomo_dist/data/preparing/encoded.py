"""One encoded image as pixels: of which formats, and as a viewer shows it, upright and on white."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.progress import say

# A file is what its first bytes say; not all that Pillow reads, as for some it starts other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_TIFF_BITS = 258  # number of the tag BitsPerSample
_WARNED: set[str] = set()
# What makes a picture upright, by its EXIF orientation (1: it is).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decoded(content: bytes, where: str) -> np.ndarray:
    """uint8 [H, W] for grey, [H, W, 3] for all other kinds of pictures; what is transparent lies on white.

    Raises DataError naming `where` for what is no whole image of `FORMATS`, or has pixels of more than 8 bits.
    """
    try:
        with _named_warnings(where), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if kind := _deep(image):
                raise DataError(f"{where}: pixels of more than 8 bits ({kind}). Convert the image to 8 bits.")
            mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
            return np.asarray(_on_white(_upright(image)).convert(mode))
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(
            f"{where} is not a whole image of the formats {known}. Replace or convert it."
        ) from None
    except (DataError, MemoryError):
        raise
    except Exception as e:  # of a damaged file Pillow raises what its code meets: TypeError, OverflowError
        raise DataError(f"{where} is not a whole image: {describe(e)}. Replace or remove it.") from e


@contextlib.contextmanager
def _named_warnings(where: str) -> Iterator[None]:
    """Those of Pillow, as of damaged EXIF, with the image: of many that are alike the first, as Python does it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in sorted({" ".join(str(warning.message).split()) for warning in caught} - _WARNED):
        _WARNED.add(message)
        say(
            f"WARNING: {where}: {message.rstrip('.')}. It is read all the same. Others like it are not named."
        )


def _upright(image: Image.Image) -> Image.Image:
    """Cameras store the pixels as the chip lay, and beside them how it was held."""
    image.load()  # TIFF is turned there, and its tag taken away
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, ValueError, SyntaxError, struct.error):  # damaged, but the pixels are not
        return image
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: what its transparent pixels store, often black, is not meant to be seen."""
    if image.mode not in ("LA", "La", "PA", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode == "La":  # grey times its opacity; what is so in colour Pillow divides when it reads it
        image = image.convert("LA")
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)


def _deep(image: ImageFile.ImageFile) -> str:
    """Kind of the pixels of a file that has more than 8 bits a channel, else "". Opened in colour, such a file has an
    ordinary mode and would be cut to 8 bits: what is read of it says more."""
    if image.mode.startswith(("I", "F")):
        return image.mode
    bits = max(getattr(image, "tag_v2", {}).get(_TIFF_BITS, (8,)))
    if bits > 8:  # asked of the file: of one with a plane for each colour, every plane is read as if of 8
        return f"{bits} a channel"
    for decoder, _, _, arguments in image.tile:
        if found := re.search(r"\w+;16[BLNRS]", str(arguments)):  # but "BGR;16" is 5, 6 and 5 bits
            return found[0]
        if decoder in ("ppm", "ppm_plain") and isinstance(arguments, tuple) and arguments[1] > 255:
            return f"values to {arguments[1]}"
    return ""
