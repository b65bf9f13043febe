"""Which module a docstring comes from: a task made of what every machine has, for `make demo`.

The rows are written by `glomo_dist.data.preparing.demo` with their split. No published number exists.
"""

from __future__ import annotations

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.dataset import SPLITS, Row, Task, TaskData
from glomo_dist.transfer.datasets.rows import records
from glomo_dist.transfer.datasets.sources import has_ending, packed, require
from glomo_dist.transfer.datasets.splits import text_data
from glomo_dist.transfer.datasets.values import split_of, text_of
from glomo_dist.transfer.readers.models import TextReader


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: docstrings.jsonl or the folder with it; rows {text, label (module name), split}."""
    if source is not None and has_ending(source, ".jsonl"):
        path = source
    else:
        path = require(source, packed("docstrings.jsonl"), "docstring")
    found: dict[str, list[tuple[str, str, str]]] = {split: [] for split in SPLITS}
    for where, row in records(path, ("text", "label", "split")):
        split = split_of(row, "split", where)
        text, label = (text_of(row, (column,), where) for column in ("text", "label"))
        found[split].append((text, label, where))
    classes = tuple(sorted({label for _, label, _ in found["train"]}))
    number = {label: i for i, label in enumerate(classes)}
    rows: dict[str, list[Row]] = {}
    for split, items in found.items():
        rows[split] = []
        for text, label, where in items:
            if label not in number:
                raise DataError(f"{where}: label {label!r} does not occur in the train split.")
            rows[split].append(Row({"text": text}, number[label], where))
    return text_data("docstring", rows, classes, max_examples, filled=("text",))


TASK = Task(
    name="docstring",
    version=2,
    unit="words",
    load=load,
    columns={"text": 100},
    model=TextReader,
    data_source="docstrings of the standard library and the installed packages",
)
