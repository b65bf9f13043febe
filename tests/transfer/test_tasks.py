import gzip
import json
import lzma
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zstandard

from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.fingerprint import derive_seed, fingerprint
from glomo_dist.transfer.task import TASKS, get_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "sentiment"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def write_sst2(folder, train="sentence\tlabel\na smile on your face \t1\ncontains no wit \t0\n", test=None):
    folder.mkdir()
    (folder / "train.tsv").write_text(train, encoding="utf-8")
    (folder / "dev.tsv").write_text("sentence\tlabel\nit 's a charming journey . \t1\n", encoding="utf-8")
    (folder / "test.tsv").write_text(test or "sentence\tlabel\ntedious\t0\n", encoding="utf-8")
    return str(folder)


def test_registry():
    assert len(TASKS) == 12
    assert all(name == task.name for name, task in TASKS.items())
    with pytest.raises(
        ConfigError, match=r"unknown task 'sst-2'. Did you mean 'sst2'\? Known: cifar10, digits"
    ):
        get_task("sst-2")


def test_sst2_tsv(tmp_path):
    data = get_task("sst2").load(write_sst2(tmp_path / "glue"), None)
    assert data.splits["train"].columns["text"].values == [
        ["a", "smile", "on", "your", "face"],
        ["contains", "no", "wit"],
    ]
    assert data.splits["train"].labels.tolist() == [1, 0]
    assert data.splits["dev"].columns["text"].values[0][:2] == ["it", "'s"]
    assert data.splits["test"].labels.dtype == np.int64
    again = get_task("sst2").load(str(tmp_path / "glue"), None)
    assert again.fingerprint == data.fingerprint
    other = get_task("sst2").load(write_sst2(tmp_path / "b", test="sentence\tlabel\ntedious\t1\n"), None)
    assert other.fingerprint != data.fingerprint


@pytest.mark.parametrize("ending", PACK)
def test_sst2_jsonl_and_packed_tables_give_the_same_task(tmp_path, ending):
    pack = PACK[ending]
    tsv = get_task("sst2").load(write_sst2(tmp_path / "tsv"), None)
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "table").mkdir()
    for split in ("train", "dev", "test"):
        table = (tmp_path / "tsv" / f"{split}.tsv").read_text()
        (tmp_path / "table" / f"{split}.tsv{ending}").write_bytes(pack(b"\n \n" + table.encode()))
        lines = table.splitlines()[1:]
        rows = [{"text": line.split("\t")[0], "label": int(line.split("\t")[1])} for line in lines]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / "jsonl" / f"sst2_{split}.jsonl{ending}").write_bytes(pack(content))
    for folder in ("jsonl", "table"):
        assert get_task("sst2").load(str(tmp_path / folder), None).fingerprint == tsv.fingerprint


@pytest.mark.parametrize(
    ("train", "named"),
    [
        (
            "sentence\tlabel\nfine\t1\nworse\t2\n",
            r"train\.tsv, line 3: label '2' is not one of .* from 0 to 1",
        ),
        ("sentence\tlabel\nfine\t-1\n", r"train\.tsv, line 2: label '-1' is not one of"),
        (
            "sentence\tlabel\nfine\tgood\n",
            r"train\.tsv, line 2: label 'good' is not one of negative, positive",
        ),
        *(
            (
                f"sentence\tlabel\nfine\t{label}\n",
                r"train\.tsv, line 2: label .* is not one of",
            )
            for label in ("²", "--1", "9" * 5000)
        ),
        ("sentence\tlabel\nfine 1\n", r"train\.tsv, line 2: expected sentence, tab, label; got 1 cells"),
        ("sentence\tlabel\n", "the train split has no example"),
    ],
)
def test_sst2_bad_rows(tmp_path, train, named):
    with pytest.raises(DataError, match=named):
        get_task("sst2").load(write_sst2(tmp_path / "glue", train=train), None)


def test_sst2_labels_by_name(tmp_path):
    numbers = get_task("sst2").load(write_sst2(tmp_path / "numbers"), None)
    named = "sentence\tlabel\na smile on your face \tpositive\ncontains no wit \tNegative\n"
    assert (
        get_task("sst2").load(write_sst2(tmp_path / "named", named), None).fingerprint == numbers.fingerprint
    )


def test_sst2_without_labels_missing_and_undecodable(tmp_path):
    source = write_sst2(tmp_path / "glue", test="index\tsentence\n0\tuneasy mishmash\n")
    with pytest.raises(
        DataError, match=r"test\.tsv, line 1: expected the columns sentence and label.*labelled copy"
    ):
        get_task("sst2").load(source, None)
    (tmp_path / "glue" / "train.tsv").write_bytes("sentence\tlabel\ncrème brûlée\t0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.tsv, line 2, byte . of the line .*not UTF-8"):
        get_task("sst2").load(source, None)
    (tmp_path / "glue" / "train.tsv").unlink()
    with pytest.raises(
        DataError,
        match=r"none of train\.tsv, sst2_train\.jsonl, train\.jsonl, .* \(or packed: \.gz \.xz \.zst\), ",
    ):
        get_task("sst2").load(source, None)
    with pytest.raises(DataError, match="needs a source"):
        get_task("sst2").load(None, None)


def test_damaged_archive(tmp_path):
    content = "".join(json.dumps({"text": f"sentence {i}", "label": i % 2}) + "\n" for i in range(4000))
    for split in ("train", "dev", "test"):
        (tmp_path / f"sst2_{split}.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    cut = (tmp_path / "sst2_dev.jsonl.gz").read_bytes()
    (tmp_path / "sst2_dev.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DataError, match=r"sst2_dev\.jsonl\.gz cannot be read: .*cut short or damaged"):
        get_task("sst2").load(str(tmp_path), None)


def write_imdb(folder, n=60):
    for split in ("train", "test"):
        for label, name in enumerate(("neg", "pos")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n // 2):
                text = f"{split} review {i} is {('dull', 'moving')[label]}.<br /><br />The end"
                (folder / split / name / f"{i}_{3 + 5 * label}.txt").write_text(text)
    return folder


def test_imdb_folder_and_jsonl_agree(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    data = get_task("imdb").load(str(folder), None)
    assert get_task("imdb").load(str(tmp_path), None).fingerprint == data.fingerprint  # its parent
    sizes = {name: len(split.labels) for name, split in data.splits.items()}
    assert sizes["test"] == 60
    assert sizes["train"] + sizes["dev"] == 60
    assert 1 <= sizes["dev"] <= 15
    words = data.splits["test"].columns["text"].values[0]
    assert "br" not in words
    assert words[-3:] == [".", "the", "end"]
    for split in ("train", "test"):
        rows = [
            {"id": str(p), "label": label, "text": p.read_text()}
            for label, name in enumerate(("neg", "pos"))
            for p in sorted((folder / split / name).iterdir())
        ]
        (tmp_path / f"imdb_{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "aclImdb").rename(tmp_path / "moved")
    again = get_task("imdb").load(str(tmp_path), None)
    assert again.fingerprint == data.fingerprint


def test_imdb_repeated_reviews_stay_together(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    before = get_task("imdb").load(str(folder), None).splits["dev"]
    for text in (folder / "train" / "pos").glob("*.txt"):
        text.with_name(f"9{text.name}").write_text(text.read_text())
    after = get_task("imdb").load(str(folder), None)
    train = {" ".join(words) for words in after.splits["train"].columns["text"].values}
    assert not train & {" ".join(words) for words in after.splits["dev"].columns["text"].values}
    assert len(after.splits["dev"].labels) > len(before.labels)


def test_imdb_without_one_class(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    (folder / "train" / "neg").rename(folder / "train" / "negative")
    with pytest.raises(DataError, match="train/neg does not exist"):
        get_task("imdb").load(str(folder), None)


def test_imdb_in_any_place_and_after_macos_and_windows(tmp_path):
    """What these leave: hidden files, and a mark of byte order before a text."""
    plain = get_task("imdb").load(str(write_imdb(tmp_path / "plain")), None)
    odd = write_imdb(tmp_path / "sets [v1] *?" / "aclImdb")
    (odd / "train" / "neg" / "._0_3.txt").write_bytes(b"\0\5\x16\7\0Mac OS X")
    review = odd / "train" / "neg" / "0_3.txt"
    review.write_bytes(b"\xef\xbb\xbf" + review.read_bytes())
    assert get_task("imdb").load(str(odd), None).fingerprint == plain.fingerprint
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "plain"), "/test_imdb", recursive=True)
    assert get_task("imdb").load("memory://test_imdb", None).fingerprint == plain.fingerprint
    memory.rm("/test_imdb", recursive=True)


def test_imdb_empty_class_and_unreadable_text(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    (folder / "test" / "neg" / "5.txt").mkdir()
    with pytest.raises(DataError, match=r"test/neg/5\.txt cannot be read: Is a directory"):
        get_task("imdb").load(str(folder), None)
    for text in (folder / "train" / "neg").iterdir():
        text.rename(text.with_suffix(".html"))
    with pytest.raises(DataError, match=r"train/neg has no \.txt file; unpack the set again"):
        get_task("imdb").load(str(folder), None)


def test_half_a_surrogate_pair_is_hashed_and_all_else_as_before(tmp_path):
    for split in ("train", "test"):
        rows = [json.dumps({"text": f"film {i} \ud83d", "label": i % 2}) for i in range(30)]
        (tmp_path / f"imdb_{split}.jsonl").write_text("\n".join(rows))
    assert len(get_task("imdb").load(str(tmp_path), None).splits["test"].labels) == 30
    assert fingerprint("\ud83d") != fingerprint("\ud83e")
    assert fingerprint({"a": ["é", 1.5]}) == "ad0ce1acf2241111"
    assert derive_seed("x", 3, "日本") == 3415145779795070159


def test_max_examples_is_a_stable_draw(tmp_path):
    folder = str(write_imdb(tmp_path / "aclImdb"))
    one, other = (get_task("imdb").load(folder, 10) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert len(one.splits["test"].labels) == 10
    assert 0 < one.splits["test"].labels.sum() < 10  # drawn from all of the file, not its beginning


def test_docstring(tmp_path):
    rows = [
        {"text": "Return the next item.", "label": "itertools", "split": "train"},
        {"text": "Compile a pattern.", "label": "re", "split": "train"},
        {"text": "Match at the start.", "label": "re", "split": "dev"},
        {"text": "Chain iterables.", "label": "itertools", "split": "test"},
    ]
    path = tmp_path / "docstrings.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = get_task("docstring").load(str(tmp_path), None)
    assert data.classes == ("itertools", "re")
    assert data.splits["dev"].labels.tolist() == [1]
    assert get_task("docstring").load(str(path), None).fingerprint == data.fingerprint
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "docstrings.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    for source in (tmp_path / "packed", tmp_path / "packed" / "docstrings.jsonl.gz"):
        assert get_task("docstring").load(str(source), None).fingerprint == data.fingerprint
    path.write_text(path.read_text() + json.dumps({"text": "x", "label": "os", "split": "test"}) + "\n")
    with pytest.raises(DataError, match=r"docstrings\.jsonl, line 5: label 'os' does not occur in the train"):
        get_task("docstring").load(str(tmp_path), None)
    for split in ("validation", ["train"]):
        path.write_text(json.dumps({"text": "x", "label": "os", "split": split}) + "\n")
        with pytest.raises(DataError, match=f"line 1: split must be one of .*, got {re.escape(repr(split))}"):
            get_task("docstring").load(str(tmp_path), None)
    path.write_text('{"text": "x", "label": \n')
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        get_task("docstring").load(str(tmp_path), None)
    path.write_text('{"text": "x", "split": "train"}\n')
    with pytest.raises(DataError, match="line 1: key 'label' is missing"):
        get_task("docstring").load(str(tmp_path), None)


def digits(n=40):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (n, 8, 8)).astype(np.uint8), np.arange(n) % 10


def test_digits(tmp_path):
    bundled = get_task("digits").load(None, None)
    sizes = {name: len(split.labels) for name, split in bundled.splits.items()}
    assert sizes == {"train": 1258, "dev": 180, "test": 359}
    assert bundled.splits["train"].columns["image"].values[0].shape == (8, 8)
    assert max(image.max() for image in bundled.splits["train"].columns["image"].values) == 255
    images, labels = digits()
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    data = get_task("digits").load(str(tmp_path), None)
    assert sorted(label for s in data.splits.values() for label in s.labels.tolist()) == sorted(
        labels.tolist()
    )
    assert get_task("digits").load(str(tmp_path / "digits.npz"), None).fingerprint == data.fingerprint
    (tmp_path / "digits.npz.gz").write_bytes(gzip.compress((tmp_path / "digits.npz").read_bytes()))
    (tmp_path / "digits.npz").unlink()
    for source in (tmp_path, tmp_path / "digits.npz.gz"):
        assert get_task("digits").load(str(source), None).fingerprint == data.fingerprint


def test_digits_bad_input(tmp_path):
    images, labels = digits()
    path = tmp_path / "digits.npz"

    def error(**arrays):
        np.savez(path, **arrays)
        with pytest.raises(DataError) as caught:
            get_task("digits").load(str(path), None)
        assert str(path) in str(caught.value)
        return str(caught.value)

    with_nan = images.astype(np.float32)
    with_nan[7, 0, 0] = np.nan
    assert "image 7 holds NaN" in error(images=with_nan, labels=labels)
    assert "uint8" in error(images=images.astype(np.float32), labels=labels)
    assert "label 12 of image 3 is out of range, expected 0..9" in error(
        images=images, labels=np.where(np.arange(40) == 3, 12, labels)
    )
    assert "labels [n]" in error(images=images, labels=labels[:-1])
    assert "'labels' is missing" in error(images=images)
    np.save(tmp_path / "images.npy", images)
    for content in (b"not an archive", b"", (tmp_path / "images.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable"):
            get_task("digits").load(str(path), None)
    with pytest.raises(DataError, match="does not exist"):
        get_task("digits").load(str(tmp_path / "other.npz"), None)


@shared
def test_shared_sst2_has_the_published_sizes():
    data = get_task("sst2").load(str(SHARED), None)
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [29780, 37569], "dev": [428, 444], "test": [912, 909]}
    assert all(data.splits["dev"].columns["text"].values)


@shared
def test_shared_imdb():
    data = get_task("imdb").load(str(SHARED), 500)
    assert {name: len(split.labels) for name, split in data.splits.items()} == {
        "train": 500,
        "dev": 500,
        "test": 500,
    }
    assert 180 < data.splits["test"].labels.sum() < 320


@pytest.mark.parametrize("task", ["sst2", "imdb", "docstring"])
def test_a_text_without_a_word_is_refused(tmp_path, task):
    source = tmp_path / task
    if task == "sst2":
        write_sst2(source, train="sentence\tlabel\nfine\t1\n \t0\n\t1\n")
        where = r"train\.tsv, line 3: the text has no word in it \(2 such rows"
    elif task == "imdb":
        (write_imdb(source) / "test" / "neg" / "0_3.txt").write_text(" <br />\n")
        where = r"0_3\.txt: the text has no word in it \(1 such rows"
    else:
        source.mkdir()
        rows = [(text, split) for split in ("train", "dev", "test") for text in ("fine", " ")]
        lines = (json.dumps({"text": text, "label": "re", "split": split}) + "\n" for text, split in rows)
        (source / "docstrings.jsonl").write_text("".join(lines))
        where = r"docstrings\.jsonl, line 2: the text has no word in it \(1 such rows"
    with pytest.raises(DataError, match=where):
        get_task(task).load(str(source), None)


def test_a_dev_split_that_train_is_too_small_for_says_how_it_is_drawn(tmp_path):
    drawn = "the dev split has no example. It is one review in 10 of train, chosen by its hash"
    kept = [text for text in ("fine", "dull", "good", "bad") if derive_seed("imdb dev", text) % 10]
    for split in ("train", "test"):
        lines = (json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(kept))
        (tmp_path / f"imdb_{split}.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match=drawn):
        get_task("imdb").load(str(tmp_path), None)


def test_sst2_columns_are_read_by_their_names(tmp_path):
    plain = get_task("sst2").load(write_sst2(tmp_path / "plain"), None)
    turned = "label\tindex\tsentence\n1\t0\ta smile on your face \n0\t1\tcontains no wit \n"
    assert get_task("sst2").load(write_sst2(tmp_path / "a", turned), None).fingerprint == plain.fingerprint
    with pytest.raises(DataError, match=r"line 2: expected label, tab, sentence; got 1 cells"):
        get_task("sst2").load(write_sst2(tmp_path / "b", "label\tsentence\nfine 1\n"), None)
    with pytest.raises(DataError, match=r"train\.tsv, line 1: expected the columns .*got index, sentence\.$"):
        get_task("sst2").load(write_sst2(tmp_path / "c", "index\tsentence\n0\tfine\n"), None)
