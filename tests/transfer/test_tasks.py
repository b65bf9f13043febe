import gzip
import json
import re

import numpy as np
import pytest
from sentiment_samples import write_imdb, write_sst2

from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.transfer.registry import TASKS, get_task


def test_registry():
    assert len(TASKS) == 12
    assert all(name == task.name for name, task in TASKS.items())
    with pytest.raises(
        ConfigError, match=r"unknown task 'sst-2'. Did you mean 'sst2'\? Known: cifar10, digits"
    ):
        get_task("sst-2")


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
    path.write_text('{"text": "x", "label": null, "split": "train"}\n')  # no class of the name "None"
    with pytest.raises(DataError, match="line 1: 'label' must be a text, got None"):
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

    for value in (np.nan, np.inf):
        strange = images.astype(np.float32)
        strange[7, 0, 0] = value
        assert "image 7 holds NaN or infinite values" in error(images=strange, labels=labels)
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


@pytest.mark.parametrize("task", ["sst2", "imdb", "docstring"])
def test_a_text_without_a_word_is_refused(tmp_path, task):
    source = tmp_path / task
    if task == "sst2":
        write_sst2(source, train="sentence\tlabel\nfine\t1\n \t0\n\t1\n")
        where = r"train\.tsv, line 3: the text has no word in it \(2 such rows "
    elif task == "imdb":
        (write_imdb(source) / "test" / "neg" / "0_3.txt").write_text(" <br />\n")
        where = r"0_3\.txt: the text has no word in it \(1 such row "
    else:
        source.mkdir()
        rows = [(text, split) for split in ("train", "dev", "test") for text in ("fine", " ")]
        lines = (json.dumps({"text": text, "label": "re", "split": split}) + "\n" for text, split in rows)
        (source / "docstrings.jsonl").write_text("".join(lines))
        where = r"docstrings\.jsonl, line 2: the text has no word in it \(1 such row "
    with pytest.raises(DataError, match=where):
        get_task(task).load(str(source), None)
