"""Pixels as units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glomo_dist.data.tokenizers.pixels import PixelTokenizer
from glomo_dist.data.tokenizers.tokenizer import tokenizer_from_json
from glomo_dist.runtime.errors import DataError


def test_ids_are_levels_in_raster_order_first_channel_first() -> None:
    image = np.array([[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [0, 0, 255]]], np.uint8)
    tokenizer = PixelTokenizer(2, 2, 3, 2)
    ids = tokenizer.encode(image)
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 3 * 16, 3 * 4, 3]
    assert tokenizer.vocab_size == 64
    assert (tokenizer.decode(ids) == image).all()
    levels = PixelTokenizer(1, 8, 1, 3).decode(np.arange(8))
    assert levels.tolist() == [[0, 36, 73, 109, 146, 182, 219, 255]], "spread evenly"
    assert PixelTokenizer(1, 3, 1, 4).encode(np.array([[15, 16, 255]], np.uint8)).tolist() == [0, 1, 15]


@given(st.integers(1, 8), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_decoding_and_encoding_again_changes_nothing(bits: int, channels: int, seed: int) -> None:
    tokenizer = PixelTokenizer(3, 5, channels, bits)
    ids = np.random.default_rng(seed).integers(0, tokenizer.vocab_size, 15).astype(np.int32)
    image = tokenizer.decode(ids)
    assert image.dtype == np.uint8
    assert (tokenizer.encode(image) == ids).all()


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((3, 2), np.uint8), "2 x 2 x 1, got 3 x 2 x 1"),
        (
            np.zeros((2, 2, 3), np.uint8),
            "2 x 2 x 1, got 2 x 2 x 3. Convert the images to one size and number of",
        ),
        (np.zeros((2, 2), np.float32), "must be uint8, got float32"),
    ],
)
def test_images_that_do_not_fit_are_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PixelTokenizer(2, 2).encode(image)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(DataError, match="outside the 16 pixel ids"):
        PixelTokenizer(1, 2).decode(np.array([0, 16]))


def test_too_many_bits_are_refused() -> None:
    with pytest.raises(DataError, match="1 to 8"):
        PixelTokenizer(2, 2, 1, 9)
    with pytest.raises(DataError, match="fewer bits"):
        PixelTokenizer(2, 2, 4, 8)


def test_sizes_that_could_not_be_read_again_are_refused() -> None:
    with pytest.raises(DataError, match="must be whole numbers, got 2, 2, 1, True"):
        PixelTokenizer(2, 2, 1, True)
    for sizes in ((0, 2, 1), (2, 0, 1), (2, 2, 0)):
        with pytest.raises(DataError, match=rf"must be positive, got {' x '.join(map(str, sizes))} channels"):
            PixelTokenizer(*sizes)


def test_json_round_trip_and_fingerprint() -> None:
    tokenizer = PixelTokenizer(8, 9, 3, 5)
    value = tokenizer.to_json()
    assert tokenizer_from_json(value) == tokenizer
    with pytest.raises(DataError, match="changed after it was written"):
        tokenizer_from_json(value | {"bits": 4})
    with pytest.raises(DataError, match=r"^a\.json: .*whole numbers"):
        tokenizer_from_json(value | {"bits": "4"}, "a.json")
