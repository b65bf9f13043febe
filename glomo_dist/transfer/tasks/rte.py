"""RTE in its GLUE form (PASCAL RTE 1-3 and 5): does the hypothesis follow from the premise?

GLUE's test.tsv has no labels, so test is the published dev set (277 pairs), and dev is one premise in ten of train.
"""

from __future__ import annotations

from glomo_dist.transfer.datasets.dataset import Task, TaskData
from glomo_dist.transfer.datasets.pairs import PairRows, read_pairs
from glomo_dist.transfer.datasets.sources import packed, parquet_names, require
from glomo_dist.transfer.readers.esim import PairReader

CLASSES = ("entailment", "not_entailment")
DEV_SHARE = 10  # one in ten premises of train


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: GLUE's folder with {train,dev}.tsv, one with rte_{train,dev}.jsonl[.xz], or the hub's Parquet files."""
    collected = PairRows(CLASSES)
    train = packed("train.tsv", "rte_train.jsonl") + parquet_names("train", "rte/")
    dev = packed("dev.tsv", "rte_dev.jsonl") + parquet_names("dev", "rte/")
    collected.add_train(require(source, train, "rte"), "rte", DEV_SHARE)
    for pair in read_pairs(require(source, dev, "rte")):
        collected.add("test", pair)
    return collected.data("rte", max_examples)


TASK = Task(
    name="rte",
    version=1,
    unit="words",
    load=load,
    columns={"premise": 160, "hypothesis": 50},
    model=PairReader,
    data_source="RTE in its GLUE form (Wang et al. 2019; PASCAL RTE 1, 2, 3 and 5)",
)
