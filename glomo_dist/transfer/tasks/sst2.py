"""SST-2 (Socher et al. 2013, the GLUE form): sentiment of a sentence or phrase from a film review.

Splits as published: train on train, tune on dev, report on test. GLUE's own test.tsv has no labels; a
labelled copy is needed.
"""

from __future__ import annotations

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.dataset import SPLITS, Published, Row, Task, TaskData, text_data
from glomo_dist.transfer.models import TextReader
from glomo_dist.transfer.sources import is_jsonl, json_rows, packed, require, table, whole_number

CLASSES = ("negative", "positive")


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: a folder with {train,dev,test}.tsv (sentence, label) or sst2_{…}.jsonl[.xz] (text, label)."""
    rows = {}
    for split in SPLITS:
        path = require(source, packed(f"{split}.tsv", f"sst2_{split}.jsonl"), "sst2")
        rows[split] = _jsonl(path) if is_jsonl(path) else _tsv(path)
    return text_data("sst2", rows, CLASSES, max_examples)


def _tsv(path: str) -> list[Row]:
    rows = []
    for position, (where, cells) in enumerate(table(path)):
        if position == 0 and "sentence" in cells:
            if cells != ["sentence", "label"]:
                raise DataError(
                    f"{where}: expected the columns sentence and label, got {', '.join(cells)}. GLUE "
                    "publishes test.tsv without labels: put a labelled copy in its place."
                )
            continue
        if len(cells) != 2:
            raise DataError(f"{where}: expected sentence, tab, label; got {len(cells)} cells.")
        rows.append(Row({"text": cells[0]}, whole_number(cells[1], where), where))
    return rows


def _jsonl(path: str) -> list[Row]:
    return [
        Row({"text": row["text"]}, whole_number(row["label"], where), where)
        for where, row in json_rows(path, ("text", "label"))
    ]


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
