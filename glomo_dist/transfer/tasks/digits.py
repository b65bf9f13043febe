"""Handwritten digits, 8 x 8 pixels, bundled with scikit-learn (UCI Optical Recognition of Digits).

For `make demo`; splits 70 / 10 / 20 are ours, by index. No number published for this split exists.
"""

from __future__ import annotations

import numpy as np

from glomo_dist.data.preparing.demo import digits
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.transfer.datasets.dataset import SPLITS, Task, TaskData
from glomo_dist.transfer.datasets.image_sets import check_images
from glomo_dist.transfer.datasets.sources import has_ending, npz_arrays, packed, require
from glomo_dist.transfer.datasets.splits import checked, draw, images_split
from glomo_dist.transfer.readers.models import PixelReader

CLASSES = tuple("0123456789")
SHARES = {"train": 0.7, "dev": 0.1, "test": 0.2}


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: an .npz with images [n, H, W] (or [n, H, W, C]) and labels [n], its folder, or None."""
    if source is None:
        images, labels, where = *digits(), "sklearn.datasets.load_digits"
    else:
        where = source if has_ending(source, ".npz") else require(source, packed("digits.npz"), "digits")
        images, labels = npz_arrays(where, ("images",), ("labels",))
    images, labels = check_images(images, labels, len(CLASSES), where)
    order = np.random.default_rng(derive_seed("digits split")).permutation(len(labels))
    bounds = np.round(np.cumsum([SHARES[s] for s in SPLITS]) * len(labels)).astype(int)
    splits = {}
    for split, part in zip(SPLITS, np.split(order, bounds[:-1]), strict=True):
        part = np.sort(part)[draw(len(part), max_examples, "digits", split)]
        splits[split] = images_split(images[part], labels[part])
    return checked("digits", splits, CLASSES)


TASK = Task(
    name="digits",
    version=2,
    unit="pixels",
    load=load,
    columns={"image": None},
    model=PixelReader,
    data_source="scikit-learn's copy of the UCI handwritten digits (8 x 8)",
)
