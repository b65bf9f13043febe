"""SST-2 (Socher et al. 2013, the GLUE form): sentiment of a sentence or phrase from a film review.

Splits as published: train on train, tune on dev, report on test. GLUE's own test split has no labels; a
labelled copy is needed.
"""

from __future__ import annotations

import contextlib

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.dataset import SPLITS, Published, Row, Task, TaskData
from glomo_dist.transfer.datasets.rows import records, require_once, table
from glomo_dist.transfer.datasets.sources import find, has_records, packed, parquet_names, require
from glomo_dist.transfer.datasets.splits import text_data
from glomo_dist.transfer.datasets.values import TRUTH, class_number, no_label, text_of
from glomo_dist.transfer.readers.models import TextReader

CLASSES = ("negative", "positive")
TEXT = ("text", "sentence")
FOLDERS = ("data/", "sst2/")  # of the hub's two sets with it
UNLABELLED = (
    "GLUE publishes the test split without labels: put a labelled copy beside it, as test.jsonl (text, label), or in "
    "its place."
)


class _UnlabelledError(DataError):
    """A file of the set, but for the labels."""


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: a folder with {train,dev,test}.tsv (columns sentence and label), with sst2_{…}.jsonl[.xz] or {…}.jsonl
    (text, label), or with the hub's Parquet files (its test has no labels: put one of another form beside).
    """
    rows = {}
    for split in SPLITS:
        lines = (f"{folder}{split}.jsonl" for folder in ("", *FOLDERS))
        tables = packed(f"{split}.tsv", f"sst2_{split}.jsonl", *lines)
        hub = parquet_names(split, *FOLDERS)
        rows[split] = _labelled(source, (*tables, *hub), split)
    return text_data("sst2", rows, CLASSES, max_examples, filled=("text",))


def _labelled(source: str | None, names: tuple[str, ...], split: str) -> list[Row]:
    """The first of the files that are there; if it has no labels, the first one that has."""
    first = require(source, names, "sst2")
    try:
        return _rows(first)
    except _UnlabelledError as e:
        for path in filter(None, (find(source or "", (name,)) for name in names)):
            with contextlib.suppress(_UnlabelledError):
                return _rows(path)
        raise DataError(f"{e} {UNLABELLED}" if split == "test" else str(e)) from None


def _rows(path: str) -> list[Row]:
    return _records(path) if has_records(path) else _tsv(path)


def _tsv(path: str) -> list[Row]:
    """By the names of the columns, in any order and case; a file without them has sentence and label."""
    rows, names = [], ["sentence", "label"]
    for position, (where, cells) in enumerate(table(path)):
        if position == 0 and "sentence" in (lower := [cell.lower() for cell in cells]):
            names = lower
            require_once(where, names, ("sentence", "label"))
            if "label" not in names:
                raise _UnlabelledError(
                    f"{where}: expected the columns sentence and label, got {', '.join(cells):.200}."
                )
            continue
        if len(cells) != len(names):
            raise DataError(
                f"{where}: expected {', tab, '.join(names)}; got {counted(len(cells), 'cell')}. Mend or "
                "delete the line."
            )
        row = dict(zip(names, cells, strict=True))
        rows.append(Row({"text": row["sentence"]}, class_number(row["label"], where, CLASSES, TRUTH), where))
    return rows


def _records(path: str) -> list[Row]:
    rows = []
    for where, row in records(path, ("label",), TEXT):
        if no_label(row["label"]):
            raise _UnlabelledError(f"{where}: has no label ({row['label']}).")
        label = class_number(row["label"], where, CLASSES, TRUTH)
        rows.append(Row({"text": text_of(row, TEXT, where)}, label, where))
    return rows


TASK = Task(
    name="sst2",
    version=2,
    unit="words",
    load=load,
    columns={"text": 64},
    model=TextReader,
    data_source="SST-2 in its GLUE form (Socher et al. 2013)",
    published=(
        Published(
            0.854, "recursive neural tensor network, trained on the phrases", "Socher et al. 2013, table 1"
        ),
    ),
)
