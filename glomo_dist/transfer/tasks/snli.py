"""SNLI (Bowman et al. 2015): does the hypothesis follow from the premise, contradict it, or neither?

Splits as published. Pairs without a gold label ("-") are left out, as everyone does, and counted.
"""

from __future__ import annotations

from glomo_dist.transfer.dataset import SPLITS, Published, Task, TaskData
from glomo_dist.transfer.esim import PairReader
from glomo_dist.transfer.pairs import THREE, PairRows, read_pairs
from glomo_dist.transfer.sources import find, packed, parquet_names, require

FILES = (
    "snli_1.0_{}.jsonl",
    "snli_1.0_{}.txt",
    "snli_1.0/snli_1.0_{}.jsonl",
    "snli_1.0/snli_1.0_{}.txt",
    "{}.tsv",
)
ONE_FILE = packed("snli_devset.jsonl")


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the folder with snli_1.0_{train,dev,test}.jsonl or .txt, GLUE's {…}.tsv or the hub's Parquet files; or
    snli_devset.jsonl[.xz] alone, where the column `part` names the split."""
    collected = PairRows(THREE)
    one = find(source, ONE_FILE) if source is not None else None
    if one is not None:
        collected.add_by_part(one)
    else:
        for split in SPLITS:
            tables = packed(*(file.format(split) for file in FILES))
            hub = parquet_names(split, "plain_text/")
            for pair in read_pairs(require(source, (*tables, *ONE_FILE, *hub), "snli")):
                collected.add(split, pair)
    return collected.data("snli", max_examples)


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
