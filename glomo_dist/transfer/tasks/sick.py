"""SICK (Marelli et al. 2014): inference between simple descriptions of images."""

from __future__ import annotations

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.dataset import Published, Task, TaskData
from glomo_dist.transfer.datasets.pairs import THREE, PairRows, read_pairs
from glomo_dist.transfer.datasets.sources import has_ending, packed, require
from glomo_dist.transfer.readers.esim import PairReader

SETS = {"TRAIN": "train", "TRIAL": "dev", "TEST": "test"}
# as the organisers of SemEval 2014 gave it out
SEMEVAL = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the folder with SICK.txt (column SemEval_set), sick.jsonl[.xz] (column part), or `SEMEVAL`."""
    collected = PairRows(THREE)
    path = require(source, packed("SICK.txt", "sick.jsonl", SEMEVAL["train"]), "sick")
    if has_ending(path, SEMEVAL["train"]):
        for split, name in SEMEVAL.items():
            for pair in read_pairs(require(source, packed(name), "sick")):
                collected.add(split, pair)
    elif has_ending(path, ".jsonl"):
        collected.add_by_part(path)
    else:
        for pair in read_pairs(path):
            if pair.fields.get("SemEval_set") not in SETS:
                raise DataError(
                    f"{pair.where}: SemEval_set must be one of {', '.join(SETS)}, got "
                    f"{pair.fields.get('SemEval_set')!r}. Correct or remove the row."
                )
            collected.add(SETS[pair.fields["SemEval_set"]], pair)
    return collected.data("sick", max_examples)


TASK = Task(
    name="sick",
    version=1,
    unit="words",
    load=load,
    columns={"premise": 40, "hypothesis": 40},
    model=PairReader,
    data_source="SICK (Marelli et al. 2014)",
    published=(
        Published(
            0.846, "Illinois-LH, features and a linear classifier", "Marelli et al. 2014, SemEval task 1"
        ),
    ),
)
