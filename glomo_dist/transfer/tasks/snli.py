"""SNLI (Bowman et al. 2015): does the hypothesis follow from the premise, contradict it, or neither?

Splits as published. Pairs without a gold label ("-") are left out, as everyone does, and counted.
"""

from __future__ import annotations

from glomo_dist.transfer.datasets.dataset import SPLITS, Published, Task, TaskData
from glomo_dist.transfer.datasets.pairs import THREE, PairRows, published_names, read_pairs
from glomo_dist.transfer.datasets.sources import has_ending, packed, parquet_names, require
from glomo_dist.transfer.readers.esim import PairReader

ONE_FILE = "snli_devset.jsonl"


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the folder with snli_1.0_{train,dev,test}.jsonl or .txt, GLUE's {…}.tsv or the hub's Parquet files; or
    snli_devset.jsonl[.xz] without a train split of the others, where the column `part` names the split."""
    collected = PairRows(THREE)
    train = _file(source, "train", *packed(ONE_FILE))
    if has_ending(train, ONE_FILE):
        collected.add_by_part(train)
    else:  # all of it: in parts of two forms the same pairs could be in train and test
        for split in SPLITS:
            for pair in read_pairs(_file(source, split)):
                collected.add(split, pair)
    return collected.data("snli", max_examples)


def _file(source: str | None, split: str, *others: str) -> str:
    """others: what is looked for before the hub's files."""
    names = (*published_names("snli_1.0", split), *others, *parquet_names(split, "plain_text/"))
    return require(source, names, "snli")


TASK = Task(
    name="snli",
    version=1,
    unit="words",
    load=load,
    columns={"premise": 64, "hypothesis": 40},
    model=PairReader,
    data_source="SNLI 1.0 (Bowman et al. 2015)",
    published=(Published(0.88, "ESIM", "Chen et al. 2017, table 1"),),
)
