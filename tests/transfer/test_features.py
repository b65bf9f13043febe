import gzip
import lzma
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.files import sha256_file
from glomo_dist.transfer.coverage import Unknown
from glomo_dist.transfer.dataset import Column, Split, TaskData, images_split
from glomo_dist.transfer.features import FeatureSpec, WordVectors, pixel_positions, vectors_content
from glomo_dist.transfer.inputs import bucketed, by_length, encode

GLOVE = "the 0.5 -1 2e-1\nfilm 1 2 3\n. . . 4 5 6\nthe 9 9 9\n"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "vectors" / "wiki_sg_100d_40k.npz"


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("header", ["", "4 3\n"])
def test_glove_text(tmp_path, ending, header):
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[ending]
    path = tmp_path / f"glove.txt{ending}"
    path.write_bytes(pack((header + GLOVE).encode()))
    vectors = WordVectors.load(str(path))
    assert list(vectors.words) == ["the", "film", ". . ."]  # a word with spaces; the first of two counts
    np.testing.assert_allclose(
        vectors.table(["film", "unheard", "the"]), [[1, 2, 3], [0, 0, 0], [0.5, -1, 0.2]]
    )
    few = WordVectors.load(f"file://{path}", only={"film"})
    assert list(few.words) == ["film"]
    assert few.vectors.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (". . . 1 2 3\nthe 4 5 6\n", [". . .", "the"]),
        ("to name@domain.com 1 2 3\n\n. . 4 5 6\n", ["to name@domain.com", ". ."]),
        ("no . 5 1 2 3\nthe 4 5 6\n", ["no . 5", "the"]),
        ("2 3\n. 1 1 2 3\nthe 4 5 6\n", [". 1", "the"]),  # the header says where the word ends
        (". . 1 2 3\nthe 4 5 6\n7 8 9 10\n", [". .", "the", "7"]),
    ],
)
def test_glove_with_spaces_in_the_first_word(tmp_path, text, words):
    (tmp_path / "glove.txt").write_text(text)
    vectors = WordVectors.load(str(tmp_path / "glove.txt"))
    assert list(vectors.words) == words
    assert vectors.vectors[:2].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (". 1 1 2 3\nthe 4 5 6\n", "line 2: expected a word and 4 numbers, got 4 cells"),
        (". . 1 2 3\n. . 4 5\n", "line 1: could not convert string to float: '.'"),
        ("the 1 2 3\nfilm 1 2\n", "line 2: expected a word and 3 numbers, got 3 cells"),
        ("the 1 2 3\nfilm 1 2 3 4\n", "line 2: expected a word and 3 numbers, got 5 cells"),
        ("the 1 2 3\nfilm 1 two 3\n", "line 2: could not convert string to float: .*'two'"),
        ("the 1 2 3\nfilm 1 1e39 3\n", "line 2: the vector of 'film' is not finite"),
        ("the\t1\t2\nfilm\t1\t2\n", r"line 1: expected a word and its numbers, got 1 cells\. Single spaces"),
        ("the 1 2 3\nfilm 1 nan 3\n", "line 2: the vector of 'film' is not finite"),
        ("2 4\nthe 1 2 3\n", "line 2: expected a word and 4 numbers"),
        ("9 3\nthe 1 2 3\nfilm 1 2 3\n", "line 1 promises 9 vectors, the file has 2. The copy may be cut"),
        ("² ³\nthe 1\n", "line 1: could not convert string to float: .*'³'"),
        ("", "the file is empty"),
    ],
)
def test_glove_bad_lines(tmp_path, text, named):
    path = tmp_path / "glove.txt"
    path.write_text(text)
    with warnings.catch_warnings(), pytest.raises(DataError, match=named) as caught:
        warnings.simplefilter("error")
        WordVectors.load(str(path))
    assert str(path) in str(caught.value)


def test_vectors_are_one_file(tmp_path):
    for width in (1, 2):
        (tmp_path / f"glove.{width}d.txt").write_text("the" + width * " 1" + "\n")
    for source in (tmp_path, tmp_path / "glove.*"):
        with pytest.raises(DataError, match=r"expected one file, got .*glove\.1d\.txt, .*2d\.txt\. Name one"):
            WordVectors.load(str(source))
    assert WordVectors.load(str(tmp_path / "*.2d.txt")).width == 2
    (tmp_path / "glove.2d.txt").unlink()
    with pytest.raises(DataError, match=r"expected one file, got a folder"):
        WordVectors.load(str(tmp_path))


def test_glove_undecodable_line(tmp_path):
    (tmp_path / "glove.txt").write_bytes(b"the 1 2 3\n\xe9t\xe9 1 2 3\n")
    with pytest.raises(DataError, match=r"glove\.txt, line 2, byte . of the line .*not UTF-8"):
        WordVectors.load(str(tmp_path / "glove.txt"))


def test_npz(tmp_path):
    path = str(tmp_path / "vectors.npz")
    np.savez(path, words=np.array(["the", "film"]), vectors=np.array([[1, 2], [3, 4]], np.float16))
    assert WordVectors.load(path, width=2).table(["film"]).dtype == np.float32
    with pytest.raises(DataError, match=r"vectors\.npz: vectors of width 2, expected 50"):
        WordVectors.load(path, width=50)
    with pytest.raises(DataError, match="none of the task's 1 words"):
        WordVectors.load(path).table(["cinéma"])
    np.savez(path, words=np.array(["the", "film"]), vectors=np.array([[1, 2], [np.inf, 4]]))
    with pytest.raises(DataError, match=r"'film'.*not finite"):
        WordVectors.load(path)
    np.savez(path, words=np.array(["the"]), vectors=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"expected words \[n\]"):
        WordVectors.load(path)
    np.savez(path, words=np.array(["the"]))
    with pytest.raises(DataError, match="'vectors' is missing"):
        WordVectors.load(path)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"vectors": np.array([["1", "2"], ["3", "4"]])}, "vectors must be numbers, got <U1"),
        ({"vectors": np.full((2, 2), 1e300)}, r"word 'thé' \(row 0\) is not finite as float32"),
        ({"vectors": np.zeros((2, 0))}, "vectors of width 0"),
        ({"words": np.array([b"th\xe9", b"film"])}, "a word is not UTF-8"),
    ],
)
def test_npz_of_other_types(tmp_path, arrays, named):
    path = str(tmp_path / "vectors.npz")
    whole = {"words": np.array(["thé".encode(), b"film"]), "vectors": np.eye(2)}
    np.savez(path, **whole)
    assert list(WordVectors.load(path).words) == ["thé", "film"]  # words stored as bytes
    np.savez(path, **{**whole, **arrays})
    with pytest.raises(DataError, match=named):
        WordVectors.load(path)


def test_npz_packed_or_damaged(tmp_path):
    path = tmp_path / "vectors.npz"
    np.savez_compressed(path, words=np.array(["the"]), vectors=np.random.default_rng(0).normal(size=(1, 300)))
    whole = path.read_bytes()
    (tmp_path / "vectors.npz.xz").write_bytes(lzma.compress(whole))
    assert WordVectors.load(str(tmp_path / "vectors.npz.xz")).width == 300
    first = whole.index(b"vectors.npy") + 60
    np.save(tmp_path / "vectors.npy", np.eye(2))
    array = (tmp_path / "vectors.npy").read_bytes()
    for content in (b"no archive", b"", array, whole[:first] + b"\xff" * 30 + whole[first + 30 :]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"vectors\.npz: not a readable"):
            WordVectors.load(str(path))


def test_npz_by_other_names(tmp_path):
    """In capitals, in an archive; by URL with a query: tests/transfer/test_task_sources.py."""
    np.savez(tmp_path / "v.npz", words=np.array(["the"]), vectors=np.eye(1, 5))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "v.npz", "v.npz")
    (tmp_path / "v.npz").rename(tmp_path / "V.NPZ")
    for source in (tmp_path / "V.NPZ", f"zip://v.npz::{tmp_path}/all.zip"):
        assert WordVectors.load(str(source)).width == 5


def test_vectors_are_known_by_their_content(tmp_path):
    path = tmp_path / "glove.1d.txt"
    path.write_text("the 1\n")
    names = [str(path), f"file://{path}", str(tmp_path / "*.1d.txt")]
    assert {vectors_content(name) for name in names} == {sha256_file(path)}
    assert vectors_content("https://x.y/glove.txt") == "https://x.y/glove.txt"
    with pytest.raises(DataError, match=r"missing\.txt does not exist"):
        vectors_content(str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("pixels", FeatureSpec("pixels")),
        ("learned", FeatureSpec("learned")),
        ("learned:40", FeatureSpec("learned", width=40)),
        ("learned.txt", FeatureSpec("vectors", source="learned.txt")),
        ("https://x.y/glove.txt", FeatureSpec("vectors", source="https://x.y/glove.txt")),
        ("trnn:learned:7", FeatureSpec("learned", recurrent=True, width=7)),
        ("trnn:glove.txt", FeatureSpec("vectors", recurrent=True, source="glove.txt")),
        ("hf:org/name", FeatureSpec("states", source="org/name")),
        ("hf:a@b@-2", FeatureSpec("states", source="a@b", layer=-2)),
        ("trnn:hf:enc@0,first", FeatureSpec("states", True, source="enc", layer=0, pool="first")),
    ],
)
def test_feature_specs(spec, parsed):
    assert FeatureSpec.parse(spec) == parsed
    assert FeatureSpec.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "spec", ["", "trnn:", "trnn:pixels", "learned:", "learned:0", "learned:x", "learned:²", "hf:"]
)
def test_specs_that_are_none(spec):
    with pytest.raises(ConfigError, match="features '"):
        FeatureSpec.parse(spec)
    with pytest.raises(ConfigError, match=r"features '': expected learned, learned:WIDTH, pixels, a file"):
        FeatureSpec.parse("")


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


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent_features_end_with_their_text(cell):
    """Padding is zero and changes nothing; both directions reach every word."""
    inputs = encode(words_data(), "words", "trnn:learned:3", {"text": None}, 4, cell)
    assert inputs.width == 8
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


def test_batches_cover_every_example_once_and_are_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    batches = bucketed(lengths, 16, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert padded < 1.15 * lengths.sum()
    starts = [lengths[b].max() for b in batches]
    assert starts != sorted(starts)  # lengths do not rise over an epoch
    other = bucketed(lengths, 16, np.random.default_rng(2))
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other, strict=True))
    assert sorted(np.concatenate(by_length(lengths, 64)).tolist()) == list(range(1000))


@pytest.mark.skipif(not SHARED.is_file(), reason=f"the shared vectors are not at {SHARED}")
def test_shared_vectors():
    vectors = WordVectors.load(str(SHARED), only={"good", "great", "seventeen"}, width=100)
    good, great, other = vectors.table(["good", "great", "seventeen"])
    assert good @ great / np.linalg.norm(good) / np.linalg.norm(great) > 0.5
    assert abs(good @ other) / np.linalg.norm(good) / np.linalg.norm(other) < 0.5
