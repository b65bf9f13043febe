"""SQuAD v1.1 (Rajpurkar et al. 2016): the answer to a question is a span of a paragraph.

The test set is not public, so test is the published dev set, and dev, for choosing the epoch, is one article in
twenty of train.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from glomo_dist.data.storage.packed import open_stream
from glomo_dist.data.tokenizers.text import word_spans
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.transfer.datasets.dataset import SPLITS, Published, Row, Split, Task, TaskData
from glomo_dist.transfer.datasets.rows import records
from glomo_dist.transfer.datasets.sources import find, has_ending, one_file, packed, parquet_names, require
from glomo_dist.transfer.datasets.splits import text_data
from glomo_dist.transfer.datasets.squad_metric import exact_match, f1
from glomo_dist.transfer.readers.spans import SpanReader

PUBLISHED = (
    (*packed("train-v1.1.json"), *parquet_names("train", "plain_text/")),
    (*packed("dev-v1.1.json"), *parquet_names("dev", "plain_text/")),
)
PART = "squad_v1.1_devset_part_{}.json"
SAMPLE = packed("squad_v1.1_train_sample.json")
DEV_SHARE = 20  # one in twenty articles of train
NOT_THERE = "answer not at its place in the paragraph"


@dataclass(frozen=True)
class Answer:
    """What a prediction is compared with: the paragraph as published, where its words stand, the gold answers."""

    paragraph: str
    spans: tuple[tuple[int, int], ...] = field(repr=False)  # they follow from the paragraph
    golds: tuple[str, ...]

    def text(self, first: int, last: int) -> str:
        """The characters from word `first` to word `last`."""
        return self.paragraph[self.spans[first][0] : self.spans[last][1]] if last < len(self.spans) else ""


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the folder with {train,dev}-v1.1.json, or with the hub's Parquet files; or with
    squad_v1.1_devset_part_{train,dev,test}.json.

    To the train part of these, squad_v1.1_train_sample.json is added if it is there.
    """
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    skipped: dict[str, int] = {}
    dev = ""
    if source is not None and not find(source, PUBLISHED[0]) and find(source, packed(PART.format("train"))):
        files = [(split, require(source, packed(PART.format(split)), "squad")) for split in SPLITS]
        sample = find(source, SAMPLE)
        files += [("train", sample)] if sample else []
    else:
        files = [
            (split, require(source, (*names, *packed(PART.format(split))), "squad"))
            for split, names in zip(("train", "test"), PUBLISHED, strict=True)
        ]
        dev = f"one article in {DEV_SHARE} of train, chosen by the hash of its title"
    for split, path in files:
        for title, row in _rows(path, split, skipped):
            held_out = dev and split == "train" and derive_seed("squad dev", title) % DEV_SHARE == 0
            rows["dev" if held_out else split].append(row)
    filled = ("paragraph", "question")
    return text_data("squad", rows, (), max_examples, filled=filled, skipped=skipped, dev=dev)


@dataclass(frozen=True)
class Question:
    """A question as the files have it.

    where: "file, question id" for errors.  golds: text and first character of each answer.
    """

    where: str
    title: str
    paragraph: str
    question: str
    golds: list[tuple[str, int]]


def _rows(path: str, split: str, skipped: dict[str, int]) -> Iterator[tuple[str, Row]]:
    """(title, row) of every question.

    A training question whose answer is not in its place is left out and counted; one of dev or test is counted and
    stays, as the official evaluation only compares texts.
    """
    paragraph = ""
    spans: tuple[tuple[int, int], ...] = ()
    for asked in _from_parquet(path) if has_ending(path, ".parquet") else _from_json(path):
        if not asked.golds:
            raise DataError(f"{asked.where}: has no answer. SQuAD v1.1 is expected, where each has one.")
        # cut once for all its questions
        if asked.paragraph is not paragraph and asked.paragraph != paragraph:
            paragraph = asked.paragraph
            spans = tuple(word_spans(paragraph))
        label = _words(paragraph, spans, *asked.golds[0])
        if label is None:
            reason = f"{split}: {NOT_THERE}" + ("" if split == "train" else " (kept)")
            skipped[reason] = skipped.get(reason, 0) + 1
            if split == "train":
                continue
        texts = {"paragraph": paragraph, "question": asked.question}
        answer = Answer(paragraph, spans, tuple(text for text, _ in asked.golds))
        yield asked.title, Row(texts, label or (0, 0), asked.where, reference=answer)


def _from_json(path: str) -> Iterator[Question]:
    with open_stream(one_file(path, (".json",))) as stream:
        content = stream.read()
    try:
        for article in json.loads(content)["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    golds = [(a["text"], a["answer_start"]) for a in asked["answers"]]
                    title, context = article["title"], paragraph["context"]
                    yield _question(path, asked["id"], title, context, asked["question"], golds)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(
            f"{path}: not SQuAD's JSON, data -> paragraphs -> qas -> answers ({type(e).__name__}: {e}). Download it "
            "again."
        ) from None


def _from_parquet(path: str) -> Iterator[Question]:
    """The hub's form: a question a row, with its paragraph; of the answers a list of texts and one of places."""
    for where, row in records(path, ("id", "title", "context", "question", "answers")):
        try:
            answers = row["answers"]
            golds = list(zip(answers["text"], answers["answer_start"], strict=True))
            yield _question(where, row["id"], row["title"], row["context"], row["question"], golds)
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(
                f"{where}: no question of SQuAD ({type(e).__name__}: {e}). Download the file again."
            ) from None


def _question(
    place: str, number: Any, title: Any, paragraph: Any, question: Any, golds: list[tuple[Any, Any]]
) -> Question:
    if not all(isinstance(text, str) for text in (paragraph, question)):
        raise TypeError(f"question {number} and its paragraph must be texts")
    for text, at in golds:
        if not isinstance(text, str) or type(at) is not int:
            raise TypeError(
                f"question {number}: an answer must be a text and its place, got {text!r} and {at!r}"
            )
    return Question(f"{place}, question {number}", str(title), paragraph, question, golds)


def _words(context: str, spans: tuple[tuple[int, int], ...], text: str, start: int) -> tuple[int, int] | None:
    """First and last word that the characters from `start` touch, or None if `text` does not stand there."""
    if start < 0 or not text or context[start : start + len(text)] != text:
        return None
    first = bisect_right(spans, start, key=lambda span: span[1])
    last = bisect_left(spans, start + len(text), key=lambda span: span[0]) - 1
    return (first, last) if first <= last else None


def measure(split: Split, predictions: np.ndarray[Any, Any]) -> dict[str, float]:
    """Means over all questions, predictions int64 [examples, 2]."""
    pairs = [
        (answer.text(int(first), int(last)), answer.golds)
        for answer, (first, last) in zip(split.references, predictions, strict=True)
    ]
    return {
        "f1": float(np.mean([f1(text, golds) for text, golds in pairs])),
        "exact_match": float(np.mean([exact_match(text, golds) for text, golds in pairs])),
    }


TASK = Task(
    name="squad",
    version=1,
    unit="words",
    load=load,
    columns={"paragraph": 400, "question": 50},
    model=SpanReader,
    measure=measure,
    metric="f1",
    data_source="SQuAD v1.1 (Rajpurkar et al. 2016)",
    published=(
        Published(0.51, "logistic regression, the unpublished test set", "Rajpurkar et al. 2016, table 5"),
        Published(0.773, "BiDAF, single model, the unpublished test set", "Seo et al. 2017, table 1"),
    ),
)
