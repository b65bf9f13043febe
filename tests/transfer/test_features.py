"""Word vectors from files, and the specs of features."""

import gzip
import lzma
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.files import sha256_file
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.features.word_vectors import WordVectors, table_fingerprint, vectors_content

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
    assert WordVectors.load(str(path), only={"unheard"}).vectors.shape == (0, 3)
    with pytest.raises(
        DataError, match="vectors of width 3, expected 2" if header else "expected a word and 2"
    ):
        WordVectors.load(str(path), width=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (". . . 1 2 3\nthe 4 5 6\n", [". . .", "the"]),
        ("to name@domain.com 1 2 3\n\n. . 4 5 6\n", ["to name@domain.com", ". ."]),
        ("no . 5 1 2 3\nthe 4 5 6\n", ["no . 5", "the"]),
        ("2 3\n. 1 1 2 3\nthe 4 5 6\n", [". 1", "the"]),  # the header says where the word ends
        (". . 1 2 3\nthe 4 5 6\n7 8 9 10\n", [". .", "the", "7"]),
        (". . 1 2 3\n7 4 5 6\n", [". .", "7"]),
        ("\u00a0 1 2 3\nthe 4 5 6\n", ["\u00a0", "the"]),  # a word that is a space, as GloVe has it
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
        (". . 1 2 3\n", "line 1: could not convert string to float: '.'"),
        ("a b c\nd e f\n", "line 1: could not convert string to float: 'b'"),
        (". . 1 2 3\n. . 4 5\n", "line 1: could not convert string to float: '.'"),
        ("the 1 2 3\nfilm 1 2\n", "line 2: expected a word and 3 numbers, got 3 cells"),
        ("the 1 2 3\nfilm 1 2 3 4\n", "line 2: expected a word and 3 numbers, got 5 cells"),
        ("the 1 2 3\nfilm 1 two 3\n", "line 2: could not convert string to float: .*'two'"),
        ("the 1 2 3\nfilm 1 1e39 3\n", "line 2: the vector of 'film' is not finite"),
        ("the\t1\t2\nfilm\t1\t2\n", r"line 1: expected a word and its numbers, got 1 cell\. Single spaces"),
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


def test_a_header_of_many_words_and_numbers(tmp_path):
    words = [f"w{i}" for i in range(300)]
    lines = [f"{word} {' '.join(str(i + k) for k in range(12))}" for i, word in enumerate(words)]
    (tmp_path / "words.vec").write_text("\n".join(["300 12", *lines]))
    table = WordVectors.load(str(tmp_path / "words.vec")).table(["unheard", *words])
    np.testing.assert_array_equal(table[1:], np.arange(300)[:, None] + np.arange(12))
    (tmp_path / "none.vec").write_text("\n7 8\nthe 4\n")  # only the first line is a header
    assert WordVectors.load(str(tmp_path / "none.vec")).table(["7", "the"]).tolist() == [[8], [4]]


@pytest.mark.parametrize("width", [None, 3])
def test_glove_without_a_line(tmp_path, width):
    (tmp_path / "glove.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"glove\.txt: the file is empty\. Expected a word and its numbers"):
        WordVectors.load(str(tmp_path / "glove.txt"), width=width)


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


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".tsv"])
def test_other_endings_are_refused_and_those_that_are_read_named(tmp_path, ending):
    path = tmp_path / f"glove{ending}"
    path.write_text(GLOVE)
    with pytest.raises(DataError, match=rf"unknown ending '\{ending}'\. Expected one of \.txt, \.vec, \.npz"):
        WordVectors.load(str(path))


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
    with pytest.raises(DataError, match=r"'film' \(row 1\).*not finite"):
        WordVectors.load(path, only={"film"})
    np.savez(path, words=np.array(["the", "film", "the"]), vectors=np.array([[1], [2], [3]]))
    assert WordVectors.load(path).table(["the", "film"]).tolist() == [[1], [2]]  # the first of two counts
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
        ({"words": np.array([["the"], ["film"]])}, r"expected words \[n\] and .*got \(2, 1\) and \(2, 2\)"),
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
    names = [str(path), f"file://{path}", f"local://{path}"]
    names += [str(tmp_path / pattern) for pattern in ("*.1d.txt", "glove.?d.txt", "glove.[0-9]d.txt")]
    assert {vectors_content(name) for name in names} == {sha256_file(path)}
    assert vectors_content("https://x.y/glove.txt") == "https://x.y/glove.txt"
    with pytest.raises(DataError, match=r"missing\.txt does not exist"):
        vectors_content(str(tmp_path / "missing.txt"))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(path, path.name)
    for name in ("", "file://"):  # another archive in its place has other vectors
        source = f"zip://glove.1d.txt::{name}{tmp_path}/all.zip"
        assert vectors_content(source) == f"zip://glove.1d.txt::{sha256_file(tmp_path / 'all.zip')}"
    (tmp_path / "a::b.txt").write_text("the 1\n")
    assert vectors_content(str(tmp_path / "a::b.txt")) == sha256_file(path)
    with pytest.raises(DataError, match=r"missing\.zip cannot be read: No such file"):
        vectors_content(f"zip://v.txt::{tmp_path}/missing.zip")


def test_a_table_is_known_by_its_numbers_and_their_shape():
    tables = [np.arange(6, dtype=np.float32).reshape(shape) for shape in ((2, 3), (3, 2))]
    assert len({table_fingerprint(table) for table in (*tables, tables[0] + 1)}) == 3
    assert table_fingerprint(tables[0].copy()) == table_fingerprint(tables[0])


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
        ("hf:a\nb\n", FeatureSpec("states", source="a\nb\n")),  # as YAML may have it
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
    with pytest.raises(ConfigError, match=f"features '{spec}': (expected|trnn:) "):
        FeatureSpec.parse(spec)


def test_a_layer_that_no_encoder_has():
    """Python refuses to read such a number."""
    with pytest.raises(ConfigError, match=r"expected hf:.*, with a LAYER that an encoder has"):
        FeatureSpec.parse("hf:x@" + "1" * 5000)


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("/data/glove.6B.txt", "glove"),
        ("zip://v.txt::/data/all.zip", "all"),
        ("https://h/vec.txt?sig=ab/SECRET9", "vec"),
        ("trnn:https://me:SECRET@h/vec.txt", "trnn:vec"),
        ("https://me:SECRET@h", "h"),
    ],
)
def test_the_short_name_of_vectors_has_no_secrets(spec, short):
    """It is part of the names of jobs, so of files."""
    assert FeatureSpec.parse(spec).short() == short


def test_a_spec_means_the_same_in_every_folder(tmp_path, monkeypatch):
    """A name on the hub stays, also where it could be no path, or one of somebody who is not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "enc").mkdir()
    for given, same in (
        ("hf:enc@0", "hf:{}/enc@0,mean"),
        ("hf:~/enc", "hf:{}/enc@-1,mean"),
        ("trnn:v.txt", "trnn:{}/v.txt"),
    ):
        assert FeatureSpec.parse(given).absolute() == same.format(tmp_path)
    for name in ("org/name", "~nobody-here/enc", "x" * 300):
        assert FeatureSpec.parse(f"hf:{name}").absolute() == f"hf:{name}@-1,mean"


@pytest.mark.skipif(not SHARED.is_file(), reason=f"the shared vectors are not at {SHARED}")
def test_shared_vectors():
    vectors = WordVectors.load(str(SHARED), only={"good", "great", "seventeen"}, width=100)
    good, great, other = vectors.table(["good", "great", "seventeen"])
    assert good @ great / np.linalg.norm(good) / np.linalg.norm(great) > 0.5
    assert abs(good @ other) / np.linalg.norm(good) / np.linalg.norm(other) < 0.5
