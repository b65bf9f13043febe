"""RACE (Lai et al. 2017): questions on English exam texts, four options each; accuracy also by level.

Splits as published, or those of a copy as JSON lines, whose dev articles are divided by their column `part`.
Half of the questions are sentences with a gap, written "_": it becomes the unit "…", which predictors and word
vectors know; the cut into words alone would leave nothing of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.dataset import SPLITS, Published, Row, Task, TaskData
from glomo_dist.transfer.datasets.rows import records
from glomo_dist.transfer.datasets.sources import (
    address_parts,
    find,
    has_ending,
    packed,
    parquet_names,
    require,
    text_files,
)
from glomo_dist.transfer.datasets.splits import text_data
from glomo_dist.transfer.datasets.values import split_of
from glomo_dist.transfer.readers.choice import ChoiceReader

OPTIONS = ("A", "B", "C", "D")
LEVELS = ("middle", "high")
KEYS = ("article", "questions", "options", "answers")
_GAP = re.compile("_+")
Placed = tuple[str, str, str, dict[str, Any]]  # split, level, "file, line n", article


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the RACE folder, {train,dev,test}/{middle,high}/*.txt, or its parent; the hub's folders middle and high
    with Parquet files; or race_{train,dev}_{middle,high}.jsonl[.xz] and, if there, race_train_extra.jsonl (of unknown
    level)."""
    folders = [f"{root}{split}/{level}" for root in ("", "RACE/") for split in SPLITS for level in LEVELS]
    start = require(source, (*folders, *packed("race_train_middle.jsonl"), *_hub("train", "middle")), "race")
    if has_ending(start, ".parquet"):
        articles = _of_hub(source or "")
    elif has_ending(start, ".jsonl"):
        articles = _lines(source or "")
    else:
        articles = _folders(start)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for split, level, where, article in articles:
        rows[split] += _rows(article, where, level)
    return text_data("race", rows, OPTIONS, max_examples, filled=("article",))


def _lines(source: str) -> Iterator[Placed]:
    for part in ("train", "dev"):
        for level in LEVELS:
            path = require(source, packed(f"race_{part}_{level}.jsonl"), "race")
            for where, article in records(path, KEYS):
                placed = {"part": "train", **article} if part == "train" else article
                yield split_of(placed, "part", where), level, where, article
    extra = find(source, packed("race_train_extra.jsonl"))
    for where, article in records(extra, KEYS) if extra else ():
        yield "train", "", where, article


def _of_hub(source: str) -> Iterator[Placed]:
    """There a row is a question with its article."""
    for split in SPLITS:
        for level in LEVELS:
            path = require(source, _hub(split, level), "race")
            for where, row in records(path, ("article", "question", "options", "answer")):
                article = {f"{key}s": [row[key]] for key in ("question", "answer")}
                yield split, level, where, {"article": row["article"], "options": [row["options"]], **article}


def _hub(split: str, level: str) -> tuple[str, ...]:
    return tuple(f"{level}/{name}" for name in parquet_names(split))


def _folders(start: str) -> Iterator[Placed]:
    level_folder, follows = address_parts(start)
    root = level_folder.removesuffix("/".join(level_folder.rsplit("/", 2)[-2:])) + follows
    for split in SPLITS:
        for level in LEVELS:
            for where, article in _folder(require(root, (f"{split}/{level}",), "race")):
                yield split, level, where, article


def _folder(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The articles of a folder, one JSON object per .txt file."""
    for file, content in text_files(path):
        try:
            article = json.loads(content)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{file}: not a JSON object ({e}). Unpack the set again.") from None
        missing = [key for key in KEYS if key not in article] if isinstance(article, dict) else KEYS
        if missing:
            raise DataError(f"{file}: key {missing[0]!r} is missing. Unpack the set again.")
        yield file, article


def _rows(article: dict[str, Any], where: str, group: str) -> Iterator[Row]:
    """One row per question of an article."""
    text, questions, options, answers = (article[key] for key in KEYS)
    lists = all(isinstance(x, list) and len(x) == len(questions) for x in (questions, options, answers))
    if not isinstance(text, str) or not lists:
        raise DataError(
            f"{where}: expected an article and as many questions as options and answers. Correct or remove it."
        )
    for number, (question, offered, answer) in enumerate(zip(questions, options, answers, strict=True), 1):
        here = f"{where}, question {number}"
        if answer not in OPTIONS:
            raise DataError(
                f"{here}: answer {answer!r} is not one of {', '.join(OPTIONS)}. Correct or remove it."
            )
        if not isinstance(offered, list) or len(offered) != len(OPTIONS):
            raise DataError(
                f"{here}: expected {len(OPTIONS)} options, got {offered!r:.200}. Correct or remove it."
            )
        if not all(isinstance(part, str) for part in (question, *offered)):
            raise DataError(f"{here}: question and options must be texts. Correct or remove it.")
        texts = {
            "article": _with_gaps(text),
            "question": _with_gaps(question),
            "options": [_with_gaps(option) for option in offered],
        }
        yield Row(texts, OPTIONS.index(answer), here, group)


def _with_gaps(text: str) -> str:
    return _GAP.sub(" … ", text)


TASK = Task(
    name="race",
    version=2,  # 1 had no gaps
    unit="words",
    load=load,
    columns={"article": 400, "question": 40, "options": 30},
    model=ChoiceReader,
    data_source="RACE (Lai et al. 2017)",
    published=(
        Published(0.433, "Stanford attentive reader", "Lai et al. 2017"),
        Published(0.733, "people (Turkers)", "Lai et al. 2017"),
    ),
)
