"""Data sets in the Parquet files of the Hugging Face hub are the sets as their authors publish them."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_samples import RANDOM, same, text, write
from PIL import Image

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.registry import get_task


def test_sst2(tmp_path):
    rows = {split: [(text(), i % 2) for i in range(9)] for split in ("train", "dev", "test")}
    for split, pairs in rows.items():
        lines = ["sentence\tlabel", *(f"{sentence}\t{label}" for sentence, label in pairs)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines))
        name = "validation" if split == "dev" else split
        write(
            tmp_path / f"hub/data/{name}-00000-of-00001.parquet",
            [{"idx": i, "sentence": sentence, "label": label} for i, (sentence, label) in enumerate(pairs)],
            classes=("negative", "positive"),
        )
        named = [{"text": s, "label": y, "label_text": "negative"} for s, y in pairs]
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / f"set/{split}.jsonl").write_text("\n".join(map(json.dumps, named)))
    same("sst2", tmp_path / "hub", tmp_path)
    same("sst2", tmp_path / "set", tmp_path)
    # GLUE's test has no labels; a labelled copy of another form beside it is taken
    unlabelled = [{"sentence": sentence, "label": -1} for sentence, _ in rows["test"]]
    test = tmp_path / "hub/data/test-00000-of-00001.parquet"
    write(test, unlabelled, classes=("negative", "positive"))
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet, row 0: has no label.*labelled copy"):
        get_task("sst2").load(str(tmp_path / "hub"), None)
    for place in ("hub/test.tsv", "hub/test.jsonl", "hub/data/test.jsonl"):
        form = tmp_path / ("test.tsv" if place.endswith("tsv") else "set/test.jsonl")
        (tmp_path / place).write_bytes(form.read_bytes())
        same("sst2", tmp_path / "hub", tmp_path)
        (tmp_path / place).unlink()
    # GLUE's own form, without labels, beside it
    (tmp_path / "set/test.tsv").write_text("index\tsentence\n0\ta b\n")
    same("sst2", tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("classes", "more"),
    [
        (("positive", "negative"), {"other": {"names": None, "_type": "ClassLabel"}}),
        (("positive", "negative"), {"tokens": [{"dtype": "string"}]}),
        ({"1": "negative", "0": "positive"}, None),
        (("Positive", "NEGATIVE"), None),
    ],
    ids=["beside one without names", "beside a list", "numbered", "in capitals"],
)
def test_names_of_classes_count(tmp_path, classes, more):
    for split in ("train", "validation", "test"):
        write(
            tmp_path / f"{split}.parquet",
            [{"sentence": f"{text()} {i}", "label": i % 2} for i in range(4)],
            classes=classes,
            more=more,
        )
    assert get_task("sst2").load(str(tmp_path), None).splits["test"].labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("sst2", ["0", "1", "negative", "Positive", 1.0]),
        ("imdb", ["0", "1", "neg", "negative", 1.0]),
        ("snli", ["0", "1", "neutral", "Contradiction", 2.0, "-1", None, -1.0]),
    ],
)
def test_what_a_label_may_be(tmp_path, task, labels):
    columns = {"premise": "a b", "hypothesis": "c"} if task == "snli" else {"text": "a b"}
    column = "sentence" if task == "sst2" else "text"
    for split in ("train", "validation", "test"):
        lines = []
        for i, label in enumerate(labels * 9):
            row = {name if name != "text" else column: f"{value} {i}" for name, value in columns.items()}
            lines.append({**row, "label": label})
        for name in (split, {"validation": "dev"}.get(split, split)):
            path = tmp_path / (f"imdb_{name}.jsonl" if task == "imdb" else f"{name}.jsonl")
            path.write_text("\n".join(map(json.dumps, lines)))
    if task == "snli":
        for name in ("train", "dev", "test"):
            (tmp_path / f"{name}.jsonl").rename(tmp_path / f"snli_1.0_{name}.jsonl")
    found = get_task(task).load(str(tmp_path), None).splits["test"].labels.tolist()
    assert found == {"sst2": [0, 1, 0, 1, 1], "imdb": [0, 1, 0, 0, 1], "snli": [0, 1, 1, 2, 2]}[task] * 9
    path = next(path for path in tmp_path.iterdir() if "test" in path.name)
    path.write_text(json.dumps({**lines[0], "label": "good"}))
    with pytest.raises(DataError, match=r"line 1: label 'good' is not one of .*, nor a number from 0 to"):
        get_task(task).load(str(tmp_path), None)


def imdb(folder, files=1, suffix="-00000-of-00001"):
    """The reviews as the authors publish them in `folder`/a, as the hub does in `folder`/b/plain_text."""
    for split in ("train", "test"):
        rows = []
        for label, name in enumerate(("neg", "pos")):
            (folder / "a" / split / name).mkdir(parents=True)
            for i in range(10, 40):
                rows.append({"text": f"{text()}<br />{i}", "label": label})
                (folder / "a" / split / name / f"{i}.txt").write_text(rows[-1]["text"])
        write(folder / f"b/plain_text/{split}{suffix}.parquet", rows, files, ("neg", "pos"))


@pytest.mark.parametrize("suffix", ["", "-00000-of-00001"])
def test_imdb(tmp_path, suffix):
    imdb(tmp_path, suffix=suffix)
    data = same("imdb", tmp_path / "b", tmp_path / "a")
    assert len(data.splits["test"].labels) == 60
    same("imdb", tmp_path / "b/plain_text", tmp_path / "a")


def test_several_files_of_a_split(tmp_path):
    imdb(tmp_path, files=3, suffix="-{:05}-of-00003")
    same("imdb", tmp_path / "b", tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "b").rglob("*.parquet"):
            archive.write(path, path.relative_to(tmp_path))
    same("imdb", f"zip://b::{tmp_path}/all.zip", tmp_path / "a")
    folder = tmp_path / "b/plain_text"
    (folder / "test-00000-of-00001.parquet").write_bytes(
        (folder / "test-00000-of-00003.parquet").read_bytes()
    )
    with pytest.raises(DataError, match=r"has test-00000-of-00001\.parquet and test-00000-of-00003\.parquet"):
        get_task("imdb").load(str(tmp_path / "b"), None)
    (folder / "test-00000-of-00001.parquet").unlink()
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet does not exist"):
        get_task("imdb").load(str(tmp_path / "b"), None)


def test_hashes_in_the_names_of_files(tmp_path):
    imdb(tmp_path, files=2, suffix="-{:05}-of-00002")
    for number, path in enumerate(sorted((tmp_path / "b/plain_text").iterdir())):
        path.rename(path.with_stem(f"{path.stem}-{number:016x}"))
    same("imdb", tmp_path / "b", tmp_path / "a")


def test_columns_that_nobody_reads_do_no_harm(tmp_path):
    imdb(tmp_path)
    for path in (tmp_path / "b/plain_text").iterdir():
        table = pq.read_table(path)
        times = pa.array([1700000000123456789] * len(table), pa.timestamp("ns"))  # no time of Python's
        pq.write_table(table.append_column("scraped_at", times), path)
    same("imdb", tmp_path / "b", tmp_path / "a")
    pq.write_table(pa.table({"text": ["a"], "label": times[:1]}), path)
    with pytest.raises(DataError, match=r"row 0, column 'label': cannot be read \(ValueError"):
        get_task("imdb").load(str(tmp_path / "b"), None)


NAMES = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("named", [False, True])
def test_snli_and_mnli(tmp_path, named):
    """Labels are numbers, in the order of their names if the file has these."""
    order = (2, 0, 1) if named else (0, 1, 2)  # no set of the hub has this order: the names count
    classes = tuple(NAMES[i] for i in order) if named else None
    for task, stem, splits, folder in (
        ("snli", "snli_1.0", ("train", "dev", "test"), "plain_text"),
        ("mnli", "multinli_1.0", ("train", "dev_matched", "dev_mismatched"), "data"),
    ):
        for split in splits:
            pairs = [(text(), text(4), label) for label in (0, 1, 2, -1) for _ in range(40)]
            published = [
                {"sentence1": p, "sentence2": h, "gold_label": NAMES[order[y]] if y >= 0 else "-"}
                for p, h, y in pairs
            ]
            (tmp_path / f"{stem}_{split}.jsonl").write_text("\n".join(map(json.dumps, published)))
            rows = [{"premise": p, "hypothesis": h, "label": y} for p, h, y in pairs]
            name = split.replace("dev", "validation")
            write(tmp_path / f"{task}/{folder}/{name}-00000-of-00001.parquet", rows, classes=classes)
        data = same(task, tmp_path / task, tmp_path)
        assert sum(data.skipped.values()) == 120
    write(
        tmp_path / "mnli/data/train-00000-of-00001.parquet", [{"premise": "a", "hypothesis": "b", "label": 3}]
    )
    with pytest.raises(DataError, match=r"row 0: label 3 is not one of entailment, neutral, contradiction"):
        get_task("mnli").load(str(tmp_path / "mnli"), None)


def test_rte(tmp_path):
    classes = "entailment", "not_entailment"
    for split, name in (("train", "train"), ("dev", "validation")):
        pairs = [(text(), text(4), i % 2) for i in range(80)]
        lines = ["index\tsentence1\tsentence2\tlabel"]
        lines += [f"{i}\t{p}\t{h}\t{classes[y]}" for i, (p, h, y) in enumerate(pairs)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines))
        rows = [{"sentence1": p, "sentence2": h, "label": y} for p, h, y in pairs]
        write(tmp_path / f"glue/rte/{name}-00000-of-00001.parquet", rows, classes=classes)
    same("rte", tmp_path / "glue", tmp_path)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("task", "shape", "column", "folder"),
    [("cifar10", (32, 32, 3), "img", "plain_text"), ("mnist", (28, 28), "image", "mnist")],
)
def test_images(tmp_path, task, shape, column, folder):
    classes = get_task(task).load.__globals__["CLASSES"]
    written = {}
    for part, n in (("train", 50), ("test", 20)):
        images = RANDOM.integers(0, 256, (n, *shape)).astype(np.uint8)
        labels = RANDOM.integers(0, 10, n)
        rows = [
            {column: {"bytes": png(x), "path": None}, "label": int(y)}
            for x, y in zip(images, labels, strict=True)
        ]
        write(tmp_path / f"hub/{folder}/{part}-00000-of-00001.parquet", rows, classes=classes)
        written[part] = images, labels
    data = get_task(task).load(str(tmp_path / "hub"), None)
    np.testing.assert_array_equal(np.stack(data.splits["test"].columns["image"].values), written["test"][0])
    assert data.splits["test"].labels.tolist() == written["test"][1].tolist()
    assert len(data.splits["train"].labels) == 45
    path = tmp_path / f"hub/{folder}/test-00000-of-00001.parquet"
    for row, message in (
        ({column: {"bytes": b"none", "path": None}, "label": 1}, r"row 0 is not a whole image"),
        (
            {column: {"bytes": None, "path": "a.png"}, "label": 1},
            r"row 0: no encoded image in a column 'image'",
        ),
        ({"picture": b"", "label": 1}, r"row 0: no encoded image in a column 'image' or 'img'"),
        (
            {column: {"bytes": png(written["test"][0][0])}, "label": 10},
            r"row 0: label 10 is not one of",
        ),
    ):
        write(path, [row])
        with pytest.raises(DataError, match=message):
            get_task(task).load(str(tmp_path / "hub"), None)
    other = png(np.zeros((5, 5, 3), np.uint8))
    write(path, [{column: {"bytes": content}, "label": 1} for content in (png(written["test"][0][0]), other)])
    with pytest.raises(DataError, match=r"row 1: the image has shape \(5, 5.*Resize them"):
        get_task(task).load(str(tmp_path / "hub"), None)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet has no image in it"):
        get_task(task).load(str(tmp_path / "hub"), None)
