"""Labelled images as the sets publish them: MNIST's idx files, CIFAR's binary batches, `.npz` archives."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from glomo_dist.data.preparing.cifar import cifar_images
from glomo_dist.data.preparing.images import encoded_picture, pictures
from glomo_dist.data.storage.packed import open_stream
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.transfer.datasets.checks import class_numbers, require_pixels, require_shape
from glomo_dist.transfer.datasets.dataset import TaskData
from glomo_dist.transfer.datasets.rows import records
from glomo_dist.transfer.datasets.sources import npz_arrays, one_file
from glomo_dist.transfer.datasets.splits import checked, draw, images_split
from glomo_dist.transfer.datasets.values import class_number

Labelled = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # uint8 [n, H, W] or [n, H, W, C], int64 [n]
LABEL_KEYS = ("label", "labels")


def image_data(
    name: str, train: Labelled, test: Labelled, classes: tuple[str, ...], dev: int, max_examples: int | None
) -> TaskData:
    """A task whose set has no dev split: `dev` images drawn from train (a tenth of it, if it is small)."""
    images = train[0]
    if images.size and images.min() == images.max():
        raise DataError(
            f"task {name!r}: all pixels of the train images are {images.min()}. Check how the files were made."
        )
    order = np.random.default_rng(derive_seed(f"{name} split")).permutation(len(train[1]))
    dev = min(dev, len(order) // 10)
    parts = {
        "train": tuple(array[np.sort(order[dev:])] for array in train),
        "dev": tuple(array[np.sort(order[:dev])] for array in train),
        "test": test,
    }
    splits = {}
    for split, (images, labels) in parts.items():
        kept = draw(len(labels), max_examples, name, split)
        splits[split] = images_split(images[kept], labels[kept])
    return checked(name, splits, classes, dev="drawn from train, at most a tenth of it")


def check_images(
    images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], classes: int, where: str
) -> Labelled:
    """uint8 images and int64 labels; raises DataError naming `where` and the first bad row."""
    require_pixels(images, labels, where)
    return images, class_numbers(labels, classes, where)


def read_idx(images: str, labels: str, classes: int) -> Labelled:
    """Images [n, H, W] and labels of a pair of idx files (yann.lecun.com/exdb/mnist), plain or packed."""
    with open_stream(one_file(labels, ("-ubyte",))) as stream:
        content = stream.read()
    if content[:4] != bytes((0, 0, 8, 1)):
        raise DataError(
            f"{labels} is not an idx file of labels (it begins with {content[:4]!r}). Copy it again."
        )
    if len(content) < 8 or len(content) - 8 != struct.unpack(">I", content[4:8])[0]:
        raise DataError(f"{labels}: the number of labels is not the promised one. Copy it again.")
    pixels, numbers = _stacked(images), np.frombuffer(content, np.uint8, offset=8)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{images} has {len(pixels)} images, {labels} {len(numbers)} labels. They are of different sets, or one "
            "is not whole: copy both again."
        )
    return check_images(pixels, numbers, classes, labels)


def read_archive(path: str, classes: int, channels: int) -> Labelled:
    """Images and labels of an .npz: `images`, or `jpeg` with `offset`; and `label` or `labels`."""
    (labels,) = npz_arrays(path, LABEL_KEYS)
    return check_images(_stacked(path, channels), labels, classes, path)


def read_rows(path: str, classes: tuple[str, ...], channels: int) -> Labelled:
    """Images and labels of a split's Parquet files as the Hugging Face hub has them: an encoded image and a label a
    row."""
    images: list[np.ndarray[Any, Any]] = []
    labels = []
    for where, row in records(path, ("label",), ("image", "img")):
        image = row.get("image", row.get("img"))
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise DataError(f"{where}: no encoded image in a column 'image' or 'img'.")
        pixels = encoded_picture(content, where, channels)
        images.append(pixels)
        require_shape(pixels, images[0].shape, f"{where}: the image")
        labels.append(class_number(row["label"], where, classes))
    if not images:
        raise DataError(f"{path} has no image in it.")
    return np.stack(images), np.array(labels, np.int64)


def read_cifar_batches(paths: list[str]) -> Labelled:
    """Images [n, 32, 32, 3] and labels of CIFAR-10's binary batches."""
    found = [image for path in paths for image in cifar_images(one_file(path, (".bin",)))]
    images, labels = zip(*found, strict=True)  # a file without an image is refused
    return np.stack(images), np.array(labels, np.int64)


def _stacked(path: str, channels: int = 1) -> np.ndarray[Any, Any]:
    images = [picture.pixels for picture in pictures([path], channels=channels)]
    if not images:
        raise DataError(f"{path} has no image in it.")
    for number, image in enumerate(images):
        require_shape(image, images[0].shape, f"{path}: image {number}")
    return np.stack(images)
