"""IMDB (Maas et al. 2011, "aclImdb"): sentiment of a whole film review.

The set has no dev split: a tenth of train, chosen by a hash of the text, so that a repeated review never
stands in both.
"""

from __future__ import annotations

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import derive_seed
from glomo_dist.transfer.datasets.dataset import Published, Row, Task, TaskData
from glomo_dist.transfer.datasets.rows import records
from glomo_dist.transfer.datasets.sources import (
    address_parts,
    find,
    joined,
    packed,
    parquet_names,
    require,
    text_files,
)
from glomo_dist.transfer.datasets.splits import text_data
from glomo_dist.transfer.datasets.values import TRUTH, class_number, text_of
from glomo_dist.transfer.readers.models import TextReader

CLASSES = ("negative", "positive")
FOLDERS = ("neg", "pos")  # which the hub takes as the names of the classes
DEV_SHARE = 10  # one in ten training reviews


def load(source: str | None, max_examples: int | None = None) -> TaskData:
    """source: the aclImdb folder ({train,test}/{neg,pos}/*.txt) or its parent, imdb_{…}.jsonl[.xz], or the hub's
    Parquet files."""
    rows: dict[str, list[Row]] = {"train": [], "dev": []}
    for row in _read(source, "train"):
        is_dev = derive_seed("imdb dev", str(row.texts["text"])) % DEV_SHARE == 0
        rows["dev" if is_dev else "train"].append(row)
    rows["test"] = _read(source, "test")
    dev = f"one review in {DEV_SHARE} of train, chosen by its hash"
    return text_data("imdb", rows, CLASSES, max_examples, filled=("text",), dev=dev)


def _read(source: str | None, split: str) -> list[Row]:
    folders = f"{split}/pos", f"aclImdb/{split}/pos"
    names = (*folders, *packed(f"imdb_{split}.jsonl"), *parquet_names(split, "plain_text/"))
    path = require(source, names, "imdb")
    folder, follows = address_parts(path)
    if folder.endswith("/pos"):
        return _folder(folder.removesuffix("pos") + follows)
    return [
        Row(
            {"text": _plain(text_of(row, ("text",), where))},
            class_number(row["label"], where, CLASSES, FOLDERS, TRUTH),
            where,
        )
        for where, row in records(path, ("text", "label"))
    ]


def _folder(path: str) -> list[Row]:
    """Reviews of the folders neg and pos in `path` in the order of their names."""
    rows = []
    for label, name in enumerate(FOLDERS):
        if (folder := find(path, (name,))) is None:
            raise DataError(
                f"{joined(path, name)} does not exist; the aclImdb layout has neg and pos. Unpack it again."
            )
        for file, content in text_files(folder):
            try:
                rows.append(Row({"text": _plain(content.decode("utf-8-sig"))}, label, file))
            except UnicodeDecodeError as e:
                raise DataError(f"{file}: not UTF-8 text (byte {e.start}). Unpack the set again.") from None
    return rows


def _plain(text: str) -> str:
    return text.replace("<br />", " ")


TASK = Task(
    name="imdb",
    version=2,
    unit="words",
    load=load,
    columns={"text": 200},
    model=TextReader,
    data_source="Large Movie Review Dataset (Maas et al. 2011)",
    published=(
        Published(
            0.8889, "vectors learned on unlabelled reviews too, bag of words", "Maas et al. 2011, table 2"
        ),
    ),
)
