"""SST-2 (Socher et al. 2013, the GLUE form): sentiment of a sentence or phrase from a film review.

Splits as published: train on train, tune on dev, report on test. GLUE's own test split has no labels; a
labelled copy is needed.
"""

from __future__ import annotations

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.dataset import SPLITS, Published, Row, Task, TaskData, text_data
from glomo_dist.transfer.models import TextReader
from glomo_dist.transfer.sources import (
    class_number,
    has_records,
    packed,
    parquet_names,
    records,
    require,
    table,
    text_of,
    whole_number,
)

CLASSES = ("negative", "positive")
UNLABELLED = "GLUE publishes the test split without labels: put a labelled copy in its place."


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: a folder with {train,dev,test}.tsv (sentence, label), with sst2_{…}.jsonl[.xz] or {…}.jsonl (text,
    label), or with the hub's Parquet files (its test has no labels: put a labelled one of another form beside)."""
    rows = {}
    for split in SPLITS:
        tables = packed(f"{split}.tsv", f"sst2_{split}.jsonl", f"{split}.jsonl")
        hub = parquet_names("validation" if split == "dev" else split, "data/", "sst2/")
        path = require(source, (*tables, *hub), "sst2")
        rows[split] = _records(path) if has_records(path) else _tsv(path)
    return text_data("sst2", rows, CLASSES, max_examples)


def _tsv(path: str) -> list[Row]:
    rows = []
    for position, (where, cells) in enumerate(table(path)):
        if position == 0 and "sentence" in cells:
            if cells != ["sentence", "label"]:
                raise DataError(
                    f"{where}: expected the columns sentence and label, got {', '.join(cells)}. {UNLABELLED}"
                )
            continue
        if len(cells) != 2:
            raise DataError(f"{where}: expected sentence, tab, label; got {len(cells)} cells.")
        rows.append(Row({"text": cells[0]}, whole_number(cells[1], where), where))
    return rows


def _records(path: str) -> list[Row]:
    rows = []
    for where, row in records(path, ("label",)):
        label = class_number(row["label"], CLASSES, where)
        if label == -1:
            raise DataError(f"{where}: has no label (-1). {UNLABELLED}")
        rows.append(Row({"text": text_of(row, ("text", "sentence"), where)}, label, where))
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
