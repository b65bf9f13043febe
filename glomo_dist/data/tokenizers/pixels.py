"""Pixels as units: an image is read in raster order, and each pixel's quantised colour is its id."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from glomo_dist.data.tokenizers.tokenizer_json import check_header, form_of, restored
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import fingerprint


@dataclass(frozen=True)
class PixelTokenizer:
    """uint8 images of one size <-> ids.

    height, width, channels: of every image (channels is 1 for grey, 3 for colour).
    bits: kept of each channel, 1..8. The id of a pixel is its channel levels as the digits of a number in
        base 2**bits, first channel first, so there are (2**bits)**channels ids.
    """

    height: int
    width: int
    channels: int = 1
    bits: int = 4
    kind = "pixels"

    def __post_init__(self) -> None:
        sizes = asdict(self).values()
        if not all(type(size) is int for size in sizes):
            raise DataError(
                f"height, width, channels and bits must be whole numbers, got {', '.join(map(repr, sizes))}."
            )
        if min(self.height, self.width, self.channels) < 1:
            raise DataError(
                f"image size must be positive, got {self.height} x {self.width} x {self.channels} channels."
            )
        if not 1 <= self.bits <= 8:
            raise DataError(f"bits per channel must be 1 to 8, got {self.bits}.")
        if self.bits * self.channels > 24:
            raise DataError(
                f"{self.bits} bits in each of {self.channels} channels make 2**{self.bits * self.channels} "
                "ids; at most 2**24 are possible. Use fewer bits."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def vocab_size(self) -> int:
        return 1 << (self.bits * self.channels)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint({"kind": self.kind, **asdict(self)})

    def encode(self, image: np.ndarray) -> np.ndarray:
        """int32 [H * W] from uint8 [H, W] (one channel) or [H, W, C]."""
        if image.dtype != np.uint8:
            raise DataError(f"an image must be uint8, got {image.dtype}. Scale it to 0..255 first.")
        expected = (self.height, self.width, self.channels)
        shaped = image[..., None] if image.ndim == 2 else image
        if shaped.shape != expected:
            raise DataError(
                f"expected an image of height x width x channels {_times(expected)}, got {_times(shaped.shape)}. "
                "Convert the images to one size and number of channels."
            )
        levels = shaped.reshape(-1, self.channels).astype(np.int32) >> (8 - self.bits)
        ids = np.zeros(len(levels), np.int32)
        for channel in range(self.channels):
            ids = (ids << self.bits) | levels[:, channel]
        return ids

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """uint8 [H, W] or [H, W, C]: the quantised image, levels spread evenly over 0..255."""
        ids = np.asarray(ids)
        if ids.shape != (self.height * self.width,):
            raise DataError(f"expected {self.height * self.width} ids, got shape {ids.shape}.")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise DataError(f"ids {ids.min()}..{ids.max()} are outside the {self.vocab_size} pixel ids.")
        shifts = self.bits * np.arange(self.channels - 1, -1, -1)
        top = (1 << self.bits) - 1
        levels = (ids.astype(np.int64)[:, None] >> shifts) & top
        image = np.round(levels * 255 / top).astype(np.uint8)
        return image.reshape(self.shape if self.channels == 1 else (*self.shape, self.channels))

    def to_json(self) -> dict[str, Any]:
        return form_of(self, asdict(self))

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str = "tokenizer") -> PixelTokenizer:
        """Inverse of `to_json`; DataError naming `where` if the content is not what was written."""
        check_header(value, cls.kind, where)
        sizes: dict[str, Any] = {field.name: value.get(field.name) for field in fields(cls)}
        return restored(lambda: cls(**sizes), value, where)


class PixelCensus:
    """What occurs in images: which of the tokenizer's ids, and the range of each channel's values."""

    def __init__(self, tokenizer: PixelTokenizer) -> None:
        self._bits = tokenizer.bits
        self._occurs = np.zeros(tokenizer.vocab_size, bool)
        self._least = np.full(tokenizer.channels, 255, np.uint8)
        self._largest = np.zeros(tokenizer.channels, np.uint8)

    def add(self, pixels: np.ndarray, ids: np.ndarray) -> None:
        """An image, and what the tokenizer makes of it."""
        self._occurs[ids] = True
        values = pixels.reshape(-1, len(self._least))
        self._least = np.minimum(self._least, values.min(0))
        self._largest = np.maximum(self._largest, values.max(0))

    @property
    def ids(self) -> int:
        """How many occur."""
        return int(np.count_nonzero(self._occurs))

    def require_two_ids(self) -> None:
        """DataError if all pixels are alike, so that there is nothing to predict."""
        if self.ids > 1:
            return
        ranges = ", ".join(f"{a} to {b}" for a, b in zip(self._least, self._largest, strict=True))
        raise DataError(
            f"all pixels fall into one level of {self._bits} bits: the values of the channels are {ranges}. "
            "Scale them to 0..255, keep more bits, or check how the images were made."
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
