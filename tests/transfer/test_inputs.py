"""Examples as arrays: words, pixels, batches of similar length."""

import numpy as np
import pytest
import torch

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.dataset import Column, Split, TaskData
from glomo_dist.transfer.datasets.splits import images_split
from glomo_dist.transfer.features.coverage import Unknown
from glomo_dist.transfer.features.inputs import bucketed, by_length, encode
from glomo_dist.transfer.features.modules import pixel_positions


def words_data():
    texts = Column([["a", "film"], [], ["a", "long", "film", "a"]], np.array([[0], [1], [2]]))
    splits = {name: Split({"text": texts}, np.array([0, 1, 0])) for name in ("train", "dev")}
    splits["test"] = Split({"text": Column([["unseen", "film"]], np.array([[0]]))}, np.array([1]))
    return TaskData(splits, ("x", "y"), "f")


def test_encoded_words(tmp_path):
    path = str(tmp_path / "vectors.npz")
    np.savez(
        path, words=np.array(["film", "a", "unseen"]), vectors=np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    )
    inputs = encode(words_data(), "words", path, {"text": 3}, 8)
    columns, labels = inputs.splits["train"].batch(np.array([2, 1, 0]))
    numbers, _, lengths = columns["text"]
    assert numbers.tolist() == [2, 1, 0]
    assert lengths.tolist() == [3, 0, 2]  # cut to 3
    assert labels.tolist() == [0, 1, 0]
    features = inputs.features("train.text", columns["text"])
    assert features.tolist() == [[[3, 4], [0, 0], [1, 2]], [[0, 0]] * 3, [[3, 4], [1, 2], [0, 0]]]
    test = inputs.features("test.text", inputs.splits["test"].columns["text"].batch(np.array([0])))
    assert test.tolist() == [[[5, 6], [1, 2]]]  # a vector helps for words that train does not have
    assert not list(inputs.features.parameters())  # frozen


def test_a_text_without_words_is_one_unit_of_padding():
    """Alone in its batch too; a batch of no text has a width all the same."""
    column = encode(words_data(), "words", "learned", {"text": None}, 8).splits["train"].columns["text"]
    assert column.batch(np.array([1])).units.tolist() == [[0]]
    assert column.batch(np.zeros(0, np.int64)).units.shape == (0, 1)


def test_a_unit_without_letters_has_its_vector_and_padding_has_none(tmp_path):
    """The unit is that of a task which cuts its texts itself."""
    data, path = words_data(), str(tmp_path / "vectors.npz")
    np.savez(path, words=np.array([""]), vectors=np.ones((1, 2)))
    with pytest.raises(DataError, match="none of the task's 4 words has a vector"):
        encode(data, "words", path, {"text": None}, 8)
    data.splits["test"] = Split({"text": Column([["", "a"], [""]], np.array([[0], [1]]))}, np.array([0, 1]))
    inputs = encode(data, "words", path, {"text": None}, 8)
    batch = inputs.splits["test"].columns["text"].batch(np.array([0, 1]))
    assert inputs.features("test.text", batch).tolist() == [[[1, 1], [0, 0]], [[1, 1], [0, 0]]]


def test_words_without_a_vector_are_counted(tmp_path):
    """In all splits, as often as they occur; a text of several examples once, and only what is not cut off."""
    path = str(tmp_path / "vectors.npz")
    np.savez(path, words=np.array(["film", "a"]), vectors=np.eye(2))

    def split(*texts):
        return Split({"text": Column([t.split() for t in texts], np.array([[0], [0]]))}, np.array([0, 1]))

    splits = {"train": split("a film b b a", "b"), "dev": split("film"), "test": split("", "c d")}
    data = TaskData(splits, ("x", "y"), "f")
    # kept: a film b b | b | film | c d
    assert encode(data, "words", path, {"text": 4}, 8).without_vector == Unknown(5 / 8, 3 / 5)
    assert encode(data, "words", "trnn:" + path, {"text": 4}, 8).without_vector == Unknown(5 / 8, 3 / 5)
    assert encode(data, "words", "learned", {"text": 4}, 8).without_vector is None


def test_learned_words_know_train_only():
    assert (
        encode(words_data(), "words", "learned", {"text": None}, 9).width == 9
    )  # as wide as the reader's layers
    inputs = encode(words_data(), "words", "learned:6", {"text": None}, 8)
    units = inputs.splits["test"].columns["text"].batch(np.array([0])).units
    assert units[0, 0] == 1  # unknown
    padded = inputs.splits["train"].columns["text"].batch(np.array([0, 2]))
    features = inputs.features("train.text", padded)
    assert features.shape == (2, 4, 6)
    assert not features[0, 2:].any()
    features.sum().backward()
    (table,) = inputs.features.parameters()
    assert not table.grad[0].any()
    (wide,) = encode(words_data(), "words", "learned:600", {"text": None}, 8).features.parameters()
    torch.testing.assert_close(wide.norm(dim=1), torch.ones(5), atol=0.2, rtol=0)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent_features_end_with_their_text(cell):
    """Padding is zero and changes nothing; both directions reach every word."""
    inputs = encode(words_data(), "words", "trnn:learned:3", {"text": None}, 4, cell)
    assert inputs.width == 8
    assert isinstance(inputs.features.recurrent.forwards, {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell])
    column = inputs.splits["train"].columns["text"]
    both = inputs.features("train.text", column.batch(np.array([0, 2])))
    alone = inputs.features("train.text", column.batch(np.array([0])))
    assert both.shape == (2, 4, 8) and alone.shape == (1, 2, 8)
    torch.testing.assert_close(both[0, :2], alone[0])
    assert not both[0, 2:].any()
    table = inputs.features.below.table
    for word in (0, 1):  # the first word knows of the second, and the second of the first
        (gradient,) = torch.autograd.grad(both[0, word].sum(), table, retain_graph=True)
        assert (gradient.abs().sum(1) > 0).sum() == 2


def test_columns_share_texts_and_are_cut_each_by_its_own_limit():
    """Two examples with one article; options are k values per example, next to each other in the batch."""
    article = Column([["a", "b", "c", "d"]], np.array([[0], [0]]))
    options = Column([["x"], ["y", "z", "w"], []], np.array([[0, 1], [1, 2]]))
    split = Split({"article": article, "options": options}, np.array([0, 1]))
    data = TaskData({name: split for name in ("train", "dev", "test")}, ("0", "1"), "f")
    inputs = encode(data, "words", "learned:2", {"article": 3, "options": 2}, 8)
    examples = inputs.splits["train"]
    assert examples.lengths.tolist() == [3 + 1 + 2, 3 + 2 + 0]
    columns, labels = examples.batch(np.array([1, 0]))
    assert labels.tolist() == [1, 0]
    assert columns["article"].numbers.tolist() == [0, 0]
    assert columns["options"].numbers.tolist() == [1, 2, 0, 1]
    assert columns["options"].lengths.tolist() == [2, 0, 1, 2]
    ids = {w: i for i, w in enumerate(["a", "b", "c", "x", "y", "z"], 2)}
    assert columns["article"].units.tolist() == [[ids["a"], ids["b"], ids["c"]]] * 2
    assert columns["options"].units.tolist() == [
        [ids["y"], ids["z"]], [0, 0], [ids["x"], 0], [ids["y"], ids["z"]]
    ]  # fmt: skip


def test_encoded_pixels():
    images = np.stack([np.arange(6, dtype=np.uint8).reshape(2, 3) * 51, np.zeros((2, 3), np.uint8)])
    split = images_split(images, np.array([0, 1]))
    data = TaskData({s: split for s in ("train", "dev", "test")}, ("x", "y"), "f")
    inputs = encode(data, "pixels", "pixels", {"image": None}, 8)
    batch = inputs.splits["dev"].columns["image"].batch(np.array([1, 0]))
    features, lengths = inputs.features("dev.image", batch), batch.lengths
    assert inputs.shape == (2, 3)
    assert batch.units.dtype == torch.uint8
    assert inputs.width == 3
    assert lengths.tolist() == [6, 6]
    torch.testing.assert_close(features[1, :, 0], torch.arange(6) / 5)
    torch.testing.assert_close(features[0, :, 1:], torch.from_numpy(pixel_positions(2, 3)))
    assert pixel_positions(2, 3)[[0, 2, 3]].tolist() == [[-1, -1], [-1, 1], [1, -1]]
    odd = images_split(np.zeros((1, 3, 3), np.uint8), np.array([0]))
    with pytest.raises(DataError, match=r"test image 0 has shape \(3, 3\)"):
        encode(
            TaskData({**data.splits, "test": odd}, ("x", "y"), "f"), "pixels", "pixels", {"image": None}, 8
        )


def test_encoded_pixels_of_colour_images():
    images = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    split = images_split(images, np.array([0, 1]))
    data = TaskData({s: split for s in ("train", "dev", "test")}, ("x", "y"), "f")
    inputs = encode(data, "pixels", "pixels", {"image": None}, 8)
    features = inputs.features("test.image", inputs.splits["test"].columns["image"].batch(np.array([1])))
    assert inputs.shape == (2, 3) and inputs.width == features.shape[-1] == 5  # its colours, and its place
    torch.testing.assert_close(features[0, :, :3], torch.from_numpy(images[1].reshape(6, 3) / 255).float())
    torch.testing.assert_close(features[0, :, 3:], torch.from_numpy(pixel_positions(2, 3)))


def test_batches_cover_every_example_once_and_are_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    batches = bucketed(lengths, 16, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert padded < 1.15 * lengths.sum()
    starts = [lengths[b].max() for b in batches]
    assert 0.3 < (np.diff(starts) < 0).mean() < 0.7  # lengths do not rise over an epoch, nor over a pool
    other = bucketed(lengths, 16, np.random.default_rng(2))
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other, strict=True))
    ascending = np.concatenate(by_length(lengths, 64))
    assert sorted(ascending.tolist()) == list(range(1000))
    assert lengths[ascending].tolist() == sorted(lengths.tolist())


def test_other_examples_meet_in_the_batches_of_another_epoch():
    """Also where no two are of one length: they are sorted a pool at a time."""
    epochs = [bucketed(np.arange(1000), 16, np.random.default_rng(seed)) for seed in (1, 2)]
    first, second = ({frozenset(batch.tolist()) for batch in batches} for batches in epochs)
    assert not first & second


def test_the_fingerprint_of_vectors_is_of_those_that_are_used(tmp_path):
    """By the words that have them, in whatever order they stand there."""

    def of(words, *vectors):
        np.savez(tmp_path / "v.npz", words=np.array(words), vectors=np.array(vectors))
        return encode(words_data(), "words", str(tmp_path / "v.npz"), {"text": None}, 8).fingerprint

    found = of(["film", "a"], [0, 1], [2, 3])
    assert of(["film", "a", "unused"], [0, 1], [2, 3], [4, 5]) == of(["a", "film"], [2, 3], [0, 1]) == found
    assert len({found, of(["a", "film"], [0, 1], [2, 3]), of(["film", "a"], [0, -1], [-2, -3])}) == 3
