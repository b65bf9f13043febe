"""MultiNLI (Williams et al. 2018): inference across genres, some of which ("mismatched") training has not seen.

The test labels are not public, so test is the two published development sets, and their accuracies are reported
apart (accuracy.matched, accuracy.mismatched); dev, for choosing the epoch, is one premise in twenty of train.
"""

from __future__ import annotations

from glomo_dist.transfer.datasets.dataset import Published, Task, TaskData
from glomo_dist.transfer.datasets.pairs import THREE, PairRows, published_names, read_pairs
from glomo_dist.transfer.datasets.sources import has_ending, packed, parquet_names, require
from glomo_dist.transfer.readers.esim import PairReader

ONE_FILE = "mnli_devset_single_annotator.jsonl"
DEV_SHARE = 20  # one in twenty premises of train


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the folder with multinli_1.0_{train,dev_matched,dev_mismatched}.jsonl or .txt, GLUE's {…}.tsv, or the
    hub's Parquet files.

    Or with mnli_devset_single_annotator.jsonl[.xz] without a train split of the others, where the column `part` names
    the split and `source` the group: its labels are one annotator's, so its numbers are not MNLI accuracies.
    """
    collected = PairRows(THREE)
    train = _file(source, "train", *packed(ONE_FILE))
    if has_ending(train, ONE_FILE):
        collected.add_by_part(train, group="source")
    else:  # all of it: in parts of two forms the same pairs could be in train and test
        collected.add_train(train, "mnli", DEV_SHARE)
        for group in ("matched", "mismatched"):
            for pair in read_pairs(_file(source, f"dev_{group}")):
                collected.add("test", pair, group)
    return collected.data("mnli", max_examples)


def _file(source: str | None, name: str, *others: str) -> str:
    """others: what is looked for before the hub's files."""
    names = (*published_names("multinli_1.0", name), *others, *parquet_names(name, "data/", "mnli/"))
    return require(source, names, "mnli")


TASK = Task(
    name="mnli",
    version=1,
    unit="words",
    load=load,
    columns={"premise": 80, "hypothesis": 50},
    model=PairReader,
    data_source="MultiNLI 1.0 (Williams et al. 2018)",
    published=(
        Published(0.723, "ESIM, matched, the unpublished test set", "Williams et al. 2018"),
        Published(0.721, "ESIM, mismatched, the unpublished test set", "Williams et al. 2018"),
    ),
)
