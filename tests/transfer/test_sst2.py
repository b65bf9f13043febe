"""SST-2: its tables and JSON lines, plain and packed, and every bad row."""

import gzip
import json

import numpy as np
import pytest
from document_samples import PACK
from sentiment_samples import SHARED, shared, write_sst2

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.registry import get_task


def test_sst2_tsv(tmp_path):
    data = get_task("sst2").load(write_sst2(tmp_path / "glue"), None)
    assert data.splits["train"].columns["text"].values == [
        ["a", "smile", "on", "your", "face"],
        ["contains", "no", "wit"],
    ]
    assert data.splits["train"].labels.tolist() == [1, 0]
    assert data.splits["dev"].columns["text"].values[0][:2] == ["it", "'s"]
    assert data.splits["test"].labels.dtype == np.int64
    again = get_task("sst2").load(str(tmp_path / "glue"), None)
    assert again.fingerprint == data.fingerprint
    other = get_task("sst2").load(write_sst2(tmp_path / "b", test="sentence\tlabel\ntedious\t1\n"), None)
    assert other.fingerprint != data.fingerprint


@pytest.mark.parametrize("ending", PACK)
def test_sst2_jsonl_and_packed_tables_give_the_same_task(tmp_path, ending):
    pack = PACK[ending]
    tsv = get_task("sst2").load(write_sst2(tmp_path / "tsv"), None)
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "table").mkdir()
    for split in ("train", "dev", "test"):
        table = (tmp_path / "tsv" / f"{split}.tsv").read_text()
        (tmp_path / "table" / f"{split}.tsv{ending}").write_bytes(pack(b"\n \n" + table.encode()))
        lines = table.splitlines()[1:]
        rows = [{"text": line.split("\t")[0], "label": int(line.split("\t")[1])} for line in lines]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / "jsonl" / f"sst2_{split}.jsonl{ending}").write_bytes(pack(content))
    for folder in ("jsonl", "table"):
        assert get_task("sst2").load(str(tmp_path / folder), None).fingerprint == tsv.fingerprint


@pytest.mark.parametrize(
    ("train", "named"),
    [
        (
            "sentence\tlabel\nfine\t1\nworse\t2\n",
            r"train\.tsv, line 3: label '2' is not one of .* from 0 to 1",
        ),
        ("sentence\tlabel\nfine\t-1\n", r"train\.tsv, line 2: label '-1' is not one of"),
        (
            "sentence\tlabel\nfine\tgood\n",
            r"train\.tsv, line 2: label 'good' is not one of negative, positive",
        ),
        *(
            (
                f"sentence\tlabel\nfine\t{label}\n",
                r"train\.tsv, line 2: label .* is not one of",
            )
            for label in ("²", "--1", "9" * 5000)
        ),
        (
            "sentence\tlabel\nfine 1\n",
            r"train\.tsv, line 2: expected sentence, tab, label; got 1 cell\. Mend or delete",
        ),
        ("sentence\tlabel\n", "the train split has no example"),
    ],
)
def test_sst2_bad_rows(tmp_path, train, named):
    with pytest.raises(DataError, match=named):
        get_task("sst2").load(write_sst2(tmp_path / "glue", train=train), None)


def test_sst2_labels_by_name(tmp_path):
    numbers = get_task("sst2").load(write_sst2(tmp_path / "numbers"), None)
    named = "sentence\tlabel\na smile on your face \tpositive\ncontains no wit \tNegative\n"
    assert (
        get_task("sst2").load(write_sst2(tmp_path / "named", named), None).fingerprint == numbers.fingerprint
    )


def test_sst2_without_labels_missing_and_undecodable(tmp_path):
    source = write_sst2(tmp_path / "glue", test="index\tsentence\n0\tuneasy mishmash\n")
    with pytest.raises(
        DataError, match=r"test\.tsv, line 1: expected the columns sentence and label.*labelled copy"
    ):
        get_task("sst2").load(source, None)
    (tmp_path / "glue" / "train.tsv").write_bytes("sentence\tlabel\ncrème brûlée\t0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.tsv, line 2, byte . of the line .*not UTF-8"):
        get_task("sst2").load(source, None)
    (tmp_path / "glue" / "train.tsv").unlink()
    with pytest.raises(
        DataError,
        match=r"none of train\.tsv, sst2_train\.jsonl, train\.jsonl, .* \(or packed: \.gz \.xz \.zst\), ",
    ):
        get_task("sst2").load(source, None)
    with pytest.raises(DataError, match="needs a source"):
        get_task("sst2").load(None, None)


def test_damaged_archive(tmp_path):
    content = "".join(json.dumps({"text": f"sentence {i}", "label": i % 2}) + "\n" for i in range(4000))
    for split in ("train", "dev", "test"):
        (tmp_path / f"sst2_{split}.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    cut = (tmp_path / "sst2_dev.jsonl.gz").read_bytes()
    (tmp_path / "sst2_dev.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DataError, match=r"sst2_dev\.jsonl\.gz cannot be read: .*cut short or damaged"):
        get_task("sst2").load(str(tmp_path), None)


@shared
def test_shared_sst2_has_the_published_sizes():
    data = get_task("sst2").load(str(SHARED), None)
    counts = {name: np.bincount(split.labels).tolist() for name, split in data.splits.items()}
    assert counts == {"train": [29780, 37569], "dev": [428, 444], "test": [912, 909]}
    assert all(data.splits["dev"].columns["text"].values)


def test_sst2_a_file_that_is_one_line_is_not_repeated_in_the_message(tmp_path):
    """As of old Macs, whose lines end in CR alone."""
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\r" + b"good\t1\r" * 1000)
    with pytest.raises(DataError, match="expected the columns sentence and label") as e:
        get_task("sst2").load(str(tmp_path), None)
    assert len(str(e.value)) < 600


def test_sst2_columns_are_read_by_their_names(tmp_path):
    plain = get_task("sst2").load(write_sst2(tmp_path / "plain"), None)
    turned = "label\tindex\tsentence\n1\t0\ta smile on your face \n0\t1\tcontains no wit \n"
    assert get_task("sst2").load(write_sst2(tmp_path / "a", turned), None).fingerprint == plain.fingerprint
    with pytest.raises(DataError, match=r"line 2: expected label, tab, sentence; got 1 cell\."):
        get_task("sst2").load(write_sst2(tmp_path / "b", "label\tsentence\nfine 1\n"), None)
    with pytest.raises(DataError, match=r"train\.tsv, line 1: expected the columns .*got index, sentence\.$"):
        get_task("sst2").load(write_sst2(tmp_path / "c", "index\tsentence\n0\tfine\n"), None)


def test_sst2_columns_in_another_case(tmp_path):
    plain = get_task("sst2").load(write_sst2(tmp_path / "plain"), None)
    case = "Sentence\tLabel\na smile on your face \t1\ncontains no wit \t0\n"
    assert get_task("sst2").load(write_sst2(tmp_path / "a", case), None).fingerprint == plain.fingerprint
    with pytest.raises(DataError, match=r"train\.tsv, line 1: two columns are called 'sentence'\. Rename"):
        get_task("sst2").load(write_sst2(tmp_path / "b", "sentence\tSentence\tlabel\na\tb\t1\n"), None)


def test_sst2_labels_that_are_booleans(tmp_path):
    plain = get_task("sst2").load(write_sst2(tmp_path / "plain"), None)
    write_sst2(tmp_path / "a", "sentence\tlabel\na smile on your face \tTrue\ncontains no wit \tFalse\n")
    assert get_task("sst2").load(str(tmp_path / "a"), None).fingerprint == plain.fingerprint
    rows = [("a smile on your face ", True), ("contains no wit ", False)]
    (tmp_path / "a" / "train.tsv").unlink()
    (tmp_path / "a" / "train.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in rows)
    )
    assert get_task("sst2").load(str(tmp_path / "a"), None).fingerprint == plain.fingerprint
