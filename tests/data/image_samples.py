"""Small images, and their pixels as the program reads them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from glomo_dist.data.preparing.images import pictures

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (5, 4, 6), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def pixels(*sources: Path, **options) -> list[np.ndarray]:
    return [p.pixels for p in pictures([str(s) for s in sources], **options)]


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()
