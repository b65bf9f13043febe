"""MNIST (LeCun et al. 1998): handwritten digits of 28 x 28 pixels.

Test as published; dev is 5,000 images drawn from train.
"""

from __future__ import annotations

from glomo_dist.transfer.datasets.dataset import Published, Task, TaskData
from glomo_dist.transfer.datasets.image_sets import Labelled, image_data, read_idx, read_rows
from glomo_dist.transfer.datasets.sources import has_ending, packed, parquet_names, require
from glomo_dist.transfer.readers.resnet import ResNetReader

CLASSES = tuple("0123456789")
DEV = 5000


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or packed, or with the hub's
    Parquet files."""
    return image_data("mnist", _read(source, "train"), _read(source, "t10k"), CLASSES, DEV, max_examples)


def _read(source: str | None, part: str) -> Labelled:
    hub = parquet_names("test" if part == "t10k" else part, "mnist/")
    images = require(source, (*packed(f"{part}-images-idx3-ubyte"), *hub), "mnist")
    if has_ending(images, ".parquet"):
        return read_rows(images, CLASSES, channels=1)
    labels = require(source, packed(f"{part}-labels-idx1-ubyte"), "mnist")
    return read_idx(images, labels, len(CLASSES))


TASK = Task(
    name="mnist",
    version=1,
    unit="pixels",
    load=load,
    columns={"image": None},
    model=ResNetReader,
    data_source="MNIST (LeCun et al. 1998)",
    published=(Published(0.9905, "LeNet-5, no distortions", "LeCun et al. 1998"),),
)
