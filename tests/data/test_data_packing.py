"""Which documents share a row: the order in which they are used, and the same rows in every version."""

from __future__ import annotations

import hashlib

import numpy as np

from glomo_dist.data.reading.cutting import random_keys
from glomo_dist.data.reading.packing import pack


def test_documents_of_one_length_are_used_in_the_order_they_come() -> None:
    """Whatever the processor: numpy sorts otherwise on different ones, unless it must be stable."""
    documents, first = pack(np.full(1000, 3), 6)
    assert documents.tolist() == list(range(1000)) and first.tolist() == list(range(0, 1001, 2))


def test_the_rows_of_known_lengths() -> None:
    """A run that is resumed by a later version goes on with the documents that it has not seen."""
    documents, first = pack((random_keys(2000, 1) % np.uint64(60)).astype(np.int64) + 1, 64)
    assert len(first) == 965 and documents.dtype == first.dtype == np.int64
    assert hashlib.sha256(documents.tobytes() + first.tobytes()).hexdigest().startswith("3fa2e9fbdd662b3a")
