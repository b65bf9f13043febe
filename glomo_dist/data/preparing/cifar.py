"""CIFAR-10's binary batches: per image a label byte, then its red, its green and its blue plane of 32 x 32 pixels
(cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from glomo_dist.data.storage.files import InputFile
from glomo_dist.data.storage.npy import read_up_to
from glomo_dist.data.storage.packed import open_stream
from glomo_dist.runtime.errors import DataError

CLASSES = 10
_ROW = 1 + 3 * 32 * 32


def cifar_images(file: InputFile) -> Iterator[tuple[np.ndarray, int]]:
    """(pixels uint8 [32, 32, 3], label) of every image of a batch.

    Raises DataError for a file that is empty, ends inside of an image, or has a label that is none: CIFAR-100 has two
    labels for each image, and other sets other sizes.
    """
    with open_stream(file) as stream:
        number = 0
        while len(row := read_up_to(stream, _ROW)) == _ROW:
            if row[0] >= CLASSES:
                raise DataError(
                    f"{file.name}: label {row[0]} of image {number} is out of range, expected 0..{CLASSES - 1}. "
                    "The file is damaged, or no binary batch of CIFAR-10: copy it again, or leave it out."
                )
            yield np.frombuffer(row, np.uint8, offset=1).reshape(3, 32, 32).transpose(1, 2, 0), row[0]
            number += 1
        if row or not number:
            raise DataError(
                f"{file.name}: {number * _ROW + len(row)} bytes, expected a multiple of {_ROW}, the size of an image "
                "with its label. The file is cut off, or no binary batch of CIFAR-10: copy it again, or leave it out."
            )
