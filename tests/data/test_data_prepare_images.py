"""From raw images to shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glomo_dist.data import (
    ShardIndex,
    load_tokenizer,
    prepare_images,
    read_metadata,
    read_sample,
)
from glomo_dist.runtime.errors import ConfigError, DataError


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bits": True}, "bits must be a whole number from 1 to 8, got True"),
        ({"bits": 4.0}, "bits must be a whole number from 1 to 8, got 4.0"),
        ({"bits": 9}, "bits must be a whole number from 1 to 8, got 9"),
        ({"channels": True}, "channels must be 1"),
        ({"size": (True, 6)}, "height of size must be a whole number from 1 .* got True"),
        ({"size": (5, 6.0)}, "width of size must be a whole number from 1 .* got 6.0"),
        ({"size": (5, 6, 1)}, r"size must be \(height, width\), got \(5, 6, 1\)"),
        ({"max_images": True}, "max_images must be a whole number from 1 .* got True"),
        ({"max_images": 2.5}, "max_images must be a whole number from 1 .* got 2.5"),
        ({"shard_bytes": 2e6}, "shard_bytes must be a whole number from 1024 .* got 2000000.0"),
    ],
)
def test_bad_settings_of_images(tmp_path: Path, options: dict, message: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(ConfigError, match=message):
        prepare_images([str(tmp_path / "a.npz")], tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_more_images_than_can_be_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_images must be a whole number from 1 to"):
        prepare_images([str(tmp_path / "missing.npz")], tmp_path / "out", max_images=10**23)


def test_images_go_in_and_come_out(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    out = prepare_images([str(tmp_path / "a.npz")], tmp_path / "out", bits=8, shard_bytes=8192)
    index = ShardIndex.read(out, verify=True)
    assert (index.kind, index.samples, index.vocab_size) == ("pixels", 9, 1 << 24)
    tokenizer = index.load_tokenizer()
    for i in range(9):
        assert (tokenizer.decode(read_sample(index, i)) == images[i]).all()
        assert read_metadata(index, i) == {"source": "a.npz", "row": i}
    again = prepare_images([str(tmp_path / "a.npz")], tmp_path / "small", size=(2, 2), channels=1, bits=3)
    assert ShardIndex.read(again).lengths.tolist() == [4] * 9
    like = prepare_images([str(tmp_path / "a.npz")], tmp_path / "like", tokenizer=again, max_images=2)
    assert load_tokenizer(like) == load_tokenizer(again) and ShardIndex.read(like).samples == 2


@pytest.mark.parametrize(("bits", "warned"), [(8, True), (6, True), (5, False)])
def test_more_pixel_ids_than_a_softmax_can_learn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], bits: int, warned: bool
) -> None:
    np.savez(tmp_path / "a.npz", images=np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3))
    prepare_images([str(tmp_path / "a.npz")], tmp_path / "out", bits=bits)
    said = capfd.readouterr().err
    assert (f"WARNING: {bits} bits in 3 channels make {1 << 3 * bits:,} pixel ids." in said) == warned
    assert ("(--bits 4), or grey images (--channels 1)" in said) == warned


def test_images_of_two_sizes_name_the_odd_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    np.savez(tmp_path / "b.npz", images=np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(DataError, match=r"b\.npz, image 0: expected .* 4 x 4 x 1, got 4 x 5 x 1"):
        prepare_images([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_one_level_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 17, (5, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(
        DataError, match=r"a\.npz: all pixels fall into one level of 3 bits: .* are 0 to 16\. Scale them"
    ):
        prepare_images([str(tmp_path / "a.npz")], tmp_path / "out", bits=3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    prepare_images([str(tmp_path / "a.npz")], tmp_path / "out", bits=4)
    assert "16 pixel ids, 2 of them occur\n" in capfd.readouterr().err
    np.savez(tmp_path / "a.npz", images=np.full((2, 4, 4, 3), (255, 0, 9), np.uint8))
    with pytest.raises(DataError, match="of the channels are 255 to 255, 0 to 0, 9 to 9"):
        prepare_images([str(tmp_path / "a.npz")], tmp_path / "colour", bits=8)


def test_nan_image_leaves_nothing_behind(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4))
    images[2, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(DataError, match=r"a\.npz, image 2: nan"):
        prepare_images([str(tmp_path / "a.npz")], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
