"""What is checked of every task: its reader's columns, its rows, their labels and texts."""

import re

import numpy as np
import pytest

from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.transfer.datasets.dataset import SPLITS, Column, Row, Split, Task
from glomo_dist.transfer.datasets.splits import checked, images_split, text_data
from glomo_dist.transfer.features.inputs import truncate
from glomo_dist.transfer.readers.esim import PairReader
from glomo_dist.transfer.readers.models import Reader, TextReader


def a_task(**fields):
    kept = {
        "name": "mine",
        "version": 1,
        "unit": "words",
        "load": lambda source, max_examples: made_up(),
        "data_source": "mine",
        "model": TextReader,
    }
    return Task(**{**kept, **fields})


class OptionalReader(Reader):
    def forward(self, text, title=None):
        return text


class AnyReader(Reader):
    def forward(self, **columns):
        return columns


def test_columns_that_the_reader_does_not_take_are_refused_with_the_task():
    wrong = r"task 'mine': its columns are first, second, but PairReader reads premise, hypothesis\. Give the columns"
    with pytest.raises(ConfigError, match=wrong):
        a_task(columns={"first": 9, "second": 9}, model=PairReader)
    with pytest.raises(ConfigError, match="its columns are text, title, but TextReader reads text"):
        a_task(columns={"text": 9, "title": 9})
    with pytest.raises(ConfigError, match="its columns are title, but OptionalReader reads text, title"):
        a_task(columns={"title": 9}, model=OptionalReader)
    assert a_task(columns={"hypothesis": 9, "premise": 9}, model=PairReader)
    assert a_task(columns={"text": 9}, model=OptionalReader)
    assert a_task(columns={"text": 9, "title": 9}, model=OptionalReader)
    assert a_task(columns={"one": 9, "two": 9}, model=AnyReader)
    assert a_task(columns={"one": 9}, model=lambda sizes: AnyReader())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"unit": "word"}, "unit must be one of words, pixels, got 'word'"),
        ({"version": "1.0"}, "version must be int, got '1.0'"),
        ({"columns": ["text"]}, r"columns must map names to values, got \['text'\]"),
        ({"columns": {"text": 0}}, "columns.text must be at least 1 unit, or None for all, got 0"),
        ({"measure": "accuracy"}, "measure must be a function or a class, got 'accuracy'"),
    ],
)
def test_fields_of_another_kind_are_refused_before_an_export(field, message):
    with pytest.raises(ConfigError, match=rf"task 'mine': {message}"):
        a_task(**{"columns": {"text": 9}, **field})


@pytest.mark.parametrize("columns", [("sentence", "title"), ("text",), ("text", "title", "source")])
def test_rows_with_other_columns_than_the_task_are_refused(columns):
    """Others, too few and too many."""
    column = Column([["fine"]], np.zeros((1, 1), np.int64))
    split = Split(dict.fromkeys(columns, column), np.zeros(1, np.int64))
    task = a_task(columns={"text": 9, "title": 9}, model=OptionalReader)
    named = f"the examples have the columns {', '.join(columns)}, their task text, title"
    with pytest.raises(ConfigError, match=named):
        truncate(split, task.limits(None))


def made_up(label=0, text="a word", classes=("neg", "pos")):
    """A task's data of a person's own code, with this label and text in its fourth row of dev."""
    rows = {split: [Row({"text": "fine"}, 0 if classes else (0, 0), f"{split}, line {i}") for i in range(4)]
            for split in SPLITS}  # fmt: skip
    rows["dev"][3] = Row({"text": text}, label, "dev, line 3")
    return text_data("mine", rows, classes, None)


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        ([2, -100, np.int64(7), np.int64(-100), np.uint8(2)], "out of range"),
        (["1", "neg", 0.9, 1.0, None], "no whole number"),
    ],
)
def test_a_label_that_is_no_class_is_refused_whatever_its_type(labels, wrong):
    for label in labels:
        named = re.escape(f"dev, line 3: label {label!r} is {wrong}, task 'mine' has labels 0..1 (neg, pos)")
        with pytest.raises(DataError, match=named):
            made_up(label)


def test_labels_of_numpy_and_spans():
    assert made_up(np.uint8(1)).fingerprint == made_up(1).fingerprint
    for span in ((np.int64(3), 4), [3, 4], np.array([3, 4], np.uint8)):
        labels = made_up(span, classes=()).splits["dev"].labels
        assert labels.dtype == np.int64 and labels.tolist() == [[0, 0]] * 3 + [[3, 4]]
    for label in ((0, None), (0, 1.5), (0, 1, 2), ("0", "1")):
        with pytest.raises(DataError, match=r"dev, line 3: label .* is no span.*Labels of other forms"):
            made_up(label, classes=())


def test_labels_of_two_kinds_are_refused_by_the_row():
    with pytest.raises(
        DataError, match=r"dev, line 3: label \(0, 1\) is a span, that of dev, line 0 is a class"
    ):
        made_up((0, 1))


def test_rows_with_other_numbers_of_options_are_refused_by_the_row():
    with pytest.raises(DataError, match=r"dev, line 3: the text has 2 texts, that of dev, line 0 has 1"):
        made_up(text=("yes", "no"))


@pytest.mark.parametrize("text", [None, 5, float("nan"), ("yes", None), b"bytes"])
def test_a_text_that_is_none_is_named_with_its_row(text):
    with pytest.raises(DataError, match=r"dev, line 3: the text must be text, or texts, got "):
        made_up(text=text)


def test_labels_of_images_are_checked():
    def labelled(labels):
        good, images = np.zeros(4, np.int32), np.ones((4, 2, 2), np.uint8)
        splits = {s: images_split(images, labels if s == "test" else good) for s in SPLITS}
        return checked("mine", splits, ("a", "b"))

    assert labelled(np.array([0, 1, 1, 0], np.uint8)).splits["test"].labels.dtype == np.int64
    for wrong in (2, -1):
        with pytest.raises(
            DataError, match=rf"'mine': label {wrong} of test example 2 is out of range, .*0\.\.1"
        ):
            labelled(np.array([0, 1, wrong, 0]))
    with pytest.raises(DataError, match="'mine': labels of test must be whole numbers, got float64"):
        labelled(np.full(4, 0.9))


def test_images_that_are_no_bytes_are_refused():
    """They would be cut to whole numbers: black, if they are scaled to [0, 1]."""
    images = np.full((4, 2, 2), 128, np.uint8)
    assert len(images_split(images, np.zeros(4, np.int64)).labels) == 4
    with pytest.raises(
        DataError, match=r"images_split: images must be uint8 0\.\.255, got float64\. Scale them"
    ):
        images_split(images / 255, np.zeros(4, np.int64))
    with pytest.raises(DataError, match=r"expected images .* and labels \[n\], got \(4, 2, 2\) and \(3,\)"):
        images_split(images, np.zeros(3, np.int64))
    for shape in ((4, 4), (4, 2, 2, 3, 1)):
        with pytest.raises(DataError, match=rf"expected images \[n, H, W\] or .*got {re.escape(str(shape))}"):
            images_split(np.ones(shape, np.uint8), np.zeros(4, np.int64))


def referred(references):
    """A task's data whose rows have these references, the same ones in each split."""
    rows = [Row({"text": "fine"}, 0, f"line {i}", reference=one) for i, one in enumerate(references)]
    return text_data("mine", dict.fromkeys(SPLITS, rows), ("neg", "pos"), None)


def test_references_are_kept_whatever_they_are():
    """Also where all of a split are 0, false or empty; of arrays every number counts in the fingerprint."""
    for falsy in (0.0, False, "", []):
        assert referred([falsy, falsy]).splits["dev"].references == (falsy, falsy)
    assert referred([None, None]).splits["dev"].references == ()
    tags = np.zeros((2, 3000), np.int64)
    other = tags.copy()
    other[1, 1500] = 1
    assert np.array_equal(referred(tags).splits["dev"].references, tags)
    assert referred(tags).fingerprint == referred(tags.copy()).fingerprint != referred(other).fingerprint


def test_all_that_examples_are_made_of_is_in_their_fingerprint():
    """Graphs and results are of data with the same one. Half a character, legal in JSON, is refused nowhere."""

    def of(texts=("a b", "c"), labels=(0, 1), groups=("x", "y"), classes=("neg", "pos"), column="text"):
        rows = [Row({column: t}, n, "row", g) for t, n, g in zip(texts, labels, groups, strict=True)]
        return text_data("mine", dict.fromkeys(SPLITS, rows), classes, None).fingerprint

    half = "\ud83d"
    others = [
        of(texts=("a", "b c")),
        of(texts=("a b", "a b")),
        of(texts=("a b", half)),
        of(labels=(1, 0)),
        of(groups=("y", "x")),
        of(groups=("x", half)),
        of(classes=("neg", half)),
        of(classes=("neg", "pos", "other")),
        of(column="other"),
    ]
    assert len({of(), *others}) == 10 and of() == of()
    images = np.arange(12, dtype=np.uint8)
    shapes = [images.reshape(1, 3, 4), images.reshape(1, 4, 3), images.reshape(1, 3, 2, 2)]
    splits = [images_split(image, np.zeros(1, np.int64)) for image in shapes]
    assert len({checked("mine", dict.fromkeys(SPLITS, s), ("a",)).fingerprint for s in splits}) == 3


def test_a_split_that_is_not_there_is_named():
    rows = [Row({"text": "fine"}, 0, "line 1")]
    named = r"task 'mine': no dev split, only train, test\. Give all of train, dev, test"
    with pytest.raises(DataError, match=named):
        text_data("mine", {"train": rows, "test": rows}, ("neg", "pos"), None)
    image = images_split(np.ones((1, 2, 2), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(DataError, match=named):
        checked("mine", {"train": image, "test": image}, ("neg", "pos"))


WHOLE = {"values": [["a"]], "of": np.zeros((3, 1), np.int64)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"of": np.zeros(3, np.int64)},
            r"column 'text' of dev: `of` must be .* \[3, k\], .* got int64 \(3,\)",
        ),
        ({"of": np.zeros((5, 1), np.int64)}, r"column 'text' of dev: `of` must .* got int64 \(5, 1\)"),
        ({"of": np.zeros((3, 0), np.int64)}, r"column 'text' of dev: `of` must .* got int64 \(3, 0\)"),
        ({"of": np.zeros((3, 1))}, r"column 'text' of dev: `of` must be whole numbers .* got float64"),
        ({"of": [[0], [0], [0]]}, r"column 'text' of dev: `of` must .* got \[\[0\], \[0\], \[0\]\]"),
        ({"of": np.array([[0], [1], [0]])}, r"column 'text' of dev: `of` .* from 0 to 1, there are 1 value,"),
        ({"of": np.array([[0], [-1], [0]])}, r"column 'text' of dev: `of` has numbers from -1 to 0"),
        ({"values": ["a b"]}, r"column 'text' of dev: value 0 must be a list of words .* got 'a b'"),
        ({"groups": ("x",)}, "groups of dev are 1, for 3 examples"),
        ({"references": (1, 2)}, "references of dev are 2, for 3 examples"),
    ],
)
def test_examples_that_do_not_fit_together_are_named(changes, said):
    def split(groups=(), references=(), **column):
        return Split({"text": Column(**{**WHOLE, **column})}, np.zeros(3, np.int64), groups, references)

    assert checked("mine", dict.fromkeys(SPLITS, split()), ("a",))
    with pytest.raises(DataError, match=f"task 'mine': {said}"):
        checked("mine", {"train": split(), "dev": split(**changes), "test": split()}, ("a",))
