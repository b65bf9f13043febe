"""CIFAR-10 (Krizhevsky 2009): photographs of 32 x 32 pixels in ten classes.

Test as published; dev is 5,000 images drawn from train. The set is also published as pickled Python batches: loading
those would run whatever is in the file, so they are refused.
"""

from __future__ import annotations

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.dataset import Published, Task, TaskData
from glomo_dist.transfer.datasets.image_sets import (
    Labelled,
    image_data,
    read_archive,
    read_cifar_batches,
    read_rows,
)
from glomo_dist.transfer.datasets.sources import find, has_ending, packed, parquet_names, require
from glomo_dist.transfer.readers.resnet import ResNetReader

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DEV = 5000
BINARY = "cifar-10-batches-bin/"
PICKLED = ("data_batch_1", "cifar-10-batches-py/data_batch_1")


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the folder with the binary batches, data_batch_{1..5}.bin and test_batch.bin, with the hub's Parquet
    files, or with cifar10_{train,test}.npz or cifar10_jpeg_{train,test}.npz (arrays images, or jpeg and offset; and
    label)."""
    if (
        source is not None
        and find(source, PICKLED)
        and not find(source, (*_batch("test_batch"), *_archives("test"), *_hub("test")))
    ):
        raise DataError(
            f"task 'cifar10': {source} has the pickled Python batches, which can execute code and are not read. "
            "Download the binary version (cifar-10-binary.tar.gz) instead."
        )
    train, test = _read(source, "train"), _read(source, "test")
    return image_data("cifar10", train, test, CLASSES, DEV, max_examples)


def _read(source: str | None, part: str) -> Labelled:
    first = "data_batch_1" if part == "train" else "test_batch"
    path = require(source, (*_batch(first), *_archives(part), *_hub(part)), "cifar10")
    if has_ending(path, ".parquet"):
        return read_rows(path, CLASSES, channels=3)
    if has_ending(path, ".npz"):
        return read_archive(path, len(CLASSES), channels=3)
    if part == "test":
        return read_cifar_batches([path])
    batches = [require(source, _batch(f"data_batch_{number}"), "cifar10") for number in range(1, 6)]
    return read_cifar_batches(batches)


def _hub(part: str) -> tuple[str, ...]:
    return parquet_names(part, "plain_text/")


def _batch(name: str) -> tuple[str, ...]:
    return packed(f"{name}.bin", f"{BINARY}{name}.bin")


def _archives(part: str) -> tuple[str, ...]:
    return packed(f"cifar10_{part}.npz", f"cifar10_jpeg_{part}.npz")


TASK = Task(
    name="cifar10",
    version=1,
    unit="pixels",
    load=load,
    columns={"image": None},
    model=ResNetReader,
    data_source="CIFAR-10 (Krizhevsky 2009)",
    published=(Published(0.9125, "ResNet-20 with augmented images", "He et al. 2016, table 6"),),
)
