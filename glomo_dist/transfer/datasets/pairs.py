"""Labelled pairs of texts as the inference sets publish them: JSON lines, tables with a header line, Parquet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.dataset import SPLITS, Row, TaskData
from glomo_dist.transfer.datasets.rows import records, require_once, table
from glomo_dist.transfer.datasets.sources import has_records, packed
from glomo_dist.transfer.datasets.splits import text_data
from glomo_dist.transfer.datasets.values import class_number, no_label, split_of, text_of

THREE = ("entailment", "neutral", "contradiction")
UNLABELLED = " The test files of GLUE have no labels: a labelled copy is needed."
NO_LABEL = "no gold label (-)"  # SNLI and MNLI: the annotators did not agree
# What the sets call them: SNLI and GLUE, plain, SICK.
PREMISE = ("sentence1", "premise", "sentence_A")
HYPOTHESIS = ("sentence2", "hypothesis", "sentence_B")
LABEL = ("gold_label", "label", "entailment_label", "entailment_judgment")
COLUMNS = (*PREMISE, *HYPOTHESIS, *LABEL)
_ANNOTATOR = re.compile(r"label[1-9]")  # SNLI and MNLI end a row after the annotators that it had


def published_names(stem: str, split: str) -> tuple[str, ...]:
    """Where SNLI and MNLI keep a split as published, by the `stem` of their names, and in GLUE."""
    names = [
        f"{folder}{stem}_{split}{ending}" for folder in ("", f"{stem}/") for ending in (".jsonl", ".txt")
    ]
    return packed(*names, f"{split}.tsv")


@dataclass(frozen=True)
class Pair:
    """One row. label: as the file has it, a name or a number; fields: all its columns by name; `where` is
    "file, line n" for errors."""

    premise: str
    hypothesis: str
    label: Any
    where: str
    fields: Mapping[str, Any]


def read_pairs(path: str) -> Iterator[Pair]:
    """The pairs of a .jsonl, .tsv or .txt file, also packed, or of Parquet files.

    Raises DataError for a missing column and for what is no text.
    """
    for where, fields in records(path, optional=COLUMNS) if has_records(path) else _table(path):
        premise, hypothesis = (text_of(fields, names, where) for names in (PREMISE, HYPOTHESIS))
        # Numbers under the hub's name alone: what SNLI calls its gold label is a word.
        numbered = "label" in fields and "gold_label" not in fields and not isinstance(fields["label"], str)
        label = fields["label"] if numbered else text_of(fields, LABEL, where, UNLABELLED)
        yield Pair(premise, hypothesis, label, where, fields)


def _table(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a tab-separated file by the names in its first line that is not blank."""
    header: list[str] | None = None
    for where, cells in table(path):
        if header is None:
            header = cells
            require_once(where, header, COLUMNS)
            continue
        if len(cells) > len(header):
            raise DataError(
                f"{where}: {counted(len(cells), 'cell')}, the header has {len(header)}. A text with a tab in it? "
                "Mend or delete the line."
            )
        missing = [name for name in header[len(cells) :] if not _ANNOTATOR.fullmatch(name)]
        if missing:
            raise DataError(
                f"{where}: {counted(len(cells), 'cell')}, the header has {len(header)}: no {missing[0]}. The file "
                "may be cut off: copy it again, or mend or delete the line."
            )
        yield where, dict(zip(header, cells, strict=False))


class PairRows:
    """Collects pairs as rows of the splits, and counts those without a gold label."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
        self.skipped: dict[str, int] = {}
        self.dev = ""  # as in `checked`

    def add(self, split: str, pair: Pair, group: str = "") -> None:
        """Raises DataError for a label that is not of the set."""
        if no_label(pair.label):
            reason = f"{split}: {NO_LABEL}"
            self.skipped[reason] = self.skipped.get(reason, 0) + 1
            return
        number = class_number(pair.label, pair.where, self.classes)  # the hub numbers them in our order
        texts = {"premise": pair.premise, "hypothesis": pair.hypothesis}
        self.rows[split].append(Row(texts, number, pair.where, group))

    def data(self, task: str, max_examples: int | None) -> TaskData:
        """The collected pairs, each with a word in both texts, and the counts of those without a gold label."""
        return text_data(
            task,
            self.rows,
            self.classes,
            max_examples,
            filled=("premise", "hypothesis"),
            skipped=self.skipped,
            dev=self.dev,
        )

    def add_by_part(self, path: str, group: str | None = None) -> None:
        """All pairs of a file whose column `part` names the split; `group`: the column with their subset."""
        for pair in read_pairs(path):
            split = split_of(pair.fields, "part", pair.where)
            self.add(split, pair, str(pair.fields.get(group, "")) if group else "")

    def add_train(self, path: str, task: str, dev_share: int) -> None:
        """Training pairs; one premise in `dev_share`, chosen by its hash, goes to dev with all its pairs."""
        self.dev = f"one premise in {dev_share} of train, chosen by its hash"
        for pair in read_pairs(path):
            held_out = derive_seed(f"{task} dev", pair.premise) % dev_share == 0
            self.add("dev" if held_out else "train", pair)
