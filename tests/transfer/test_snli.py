"""SNLI: JSON lines and tables are the same task, and every bad pair is named."""

import pytest
from pair_samples import PAIRS, snli_row, texts, write_jsonl, write_snli, write_table

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.registry import get_task


def test_snli_jsonl_and_table_are_the_same_task(tmp_path):
    data = get_task("snli").load(write_snli(tmp_path / "jsonl"), None)
    train = data.splits["train"]
    assert data.classes == ("entailment", "neutral", "contradiction")
    assert train.labels.tolist() == [2, 0, 1]
    assert texts(train, "premise") == [["a", "man", "sleeps", "."]] * 2 + [["she", "said", '"', "no", '"']]
    assert texts(train, "hypothesis")[0] == ["a", "man", "is", "awake", "."]
    assert len(train.columns["premise"].values) == 2, "a premise of two pairs is there once"
    assert data.skipped == {f"{s}: no gold label (-)": 1 for s in ("train", "dev", "test")}
    header = ["gold_label", "sentence1_binary_parse", "sentence1", "sentence2", "label1"]
    for split in ("train", "dev", "test"):
        rows = [[label, "( x )", a, b, label] for a, b, label in PAIRS]
        path = tmp_path / "table" / "snli_1.0" / f"snli_1.0_{split}.txt"
        write_table(path, header, rows)
        path.write_text(f"\n{path.read_text()}")  # a blank line is no header
    assert get_task("snli").load(str(tmp_path / "table"), None).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("task", "one", "published"),
    [
        ("snli", "snli_devset", ("snli_1.0_train", "snli_1.0_dev", "snli_1.0_test")),
        (
            "mnli",
            "mnli_devset_single_annotator",
            ("multinli_1.0_train", "multinli_1.0_dev_matched", "multinli_1.0_dev_mismatched"),
        ),
    ],
)
def test_the_published_files_come_before_the_one_with_parts(tmp_path, task, one, published):
    def part_row(premise, hypothesis, part):
        return {**snli_row(premise, hypothesis, "neutral"), "part": part, "source": "matched"}

    rows = [(f"Part {i}.", "It is one.", part) for i, part in enumerate(("train", "dev", "test", "test"))]
    write_jsonl(tmp_path / f"{one}.jsonl", rows, part_row)
    alone = get_task(task).load(str(tmp_path), None)
    assert [len(alone.splits[name].labels) for name in ("train", "dev", "test")] == [1, 1, 2]
    pairs = [(f"Premise {i}.", "It is one.", "neutral") for i in range(60)]
    for folder in (tmp_path, tmp_path / "published"):
        for name in published:
            write_jsonl(folder / f"{name}.jsonl", pairs)
    both, other = (get_task(task).load(str(folder), None) for folder in (tmp_path, tmp_path / "published"))
    assert both.fingerprint == other.fingerprint != alone.fingerprint
    (tmp_path / f"{published[-1]}.jsonl").unlink()
    with pytest.raises(DataError, match=rf"has none of {published[-1]}\.jsonl"):
        get_task(task).load(str(tmp_path), None)  # nothing of the one file in its place
    (tmp_path / f"{published[0]}.jsonl").unlink()
    assert get_task(task).load(str(tmp_path), None).fingerprint == alone.fingerprint


def test_a_pair_that_changes_sides_is_another_task(tmp_path):
    turned = [(b, a, label) for a, b, label in PAIRS]
    first = get_task("snli").load(write_snli(tmp_path / "a"), None)
    assert get_task("snli").load(write_snli(tmp_path / "b", turned), None).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        (("a", "b", "maybe"), r"line 5: label 'maybe' is not one of entailment, neutral, contradiction"),
        (("a", "b", ""), r"line 5: label '' is not one of"),
        ((" ", "b", "neutral"), r"line 5: the premise has no word in it \(1 such row in this split\)"),
        (("a", "_", "neutral"), r"line 5: the hypothesis has no word in it"),
        ((None, "b", "neutral"), r"line 5: 'sentence1' must be a text, got None. Correct or remove"),
        (("a", "b", 1), r"line 5: 'gold_label' must be a text, got 1"),
    ],
)
def test_bad_pairs_are_named(tmp_path, pair, named):
    source = write_snli(tmp_path)
    write_jsonl(tmp_path / "snli_1.0_train.jsonl", [*PAIRS, pair])
    with pytest.raises(DataError, match=r"snli_1\.0_train\.jsonl, " + named):
        get_task("snli").load(source, None)


def test_tables_with_too_many_cells_or_without_labels(tmp_path):
    header = ["index", "sentence1", "sentence2", "label"]
    rows = [["0", "A man sleeps.", "A man rests.", "entailment"]] * 3
    write_table(tmp_path / "dev.tsv", header, rows)
    write_table(tmp_path / "train.tsv", header, [*rows, ["1", "A", "tab", "in it", "entailment"]])
    with pytest.raises(DataError, match=r"train\.tsv, line 5: 5 cells, the header has 4"):
        get_task("rte").load(str(tmp_path), None)
    write_table(tmp_path / "train.tsv", header[:3], [row[:3] for row in rows])
    with pytest.raises(DataError, match=r"line 2: none of the columns gold_label, label.*no labels"):
        get_task("rte").load(str(tmp_path), None)
    write_table(tmp_path / "train.tsv", [*header, "label"], [[*row, "not_entailment"] for row in rows])
    with pytest.raises(DataError, match=r"train\.tsv, line 1: two columns are called 'label'\. Rename"):
        get_task("rte").load(str(tmp_path), None)
    with pytest.raises(DataError, match=r"mnli.* needs a source"):
        get_task("mnli").load(None, None)
    with pytest.raises(DataError, match=r"nothing does not exist; .*one of snli_1\.0_train\.jsonl"):
        get_task("snli").load(str(tmp_path / "nothing"), None)


SNLI_TABLE = ["gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse",
              "sentence1", "sentence2", "captionID", "pairID", *(f"label{n}" for n in range(1, 6))]  # fmt: skip


def snli_cells(premise, hypothesis, label, annotators):
    return [label, *["( A )"] * 4, premise, hypothesis, "1.jpg#0", "1.jpg#0r1n", *annotators]


@pytest.mark.parametrize("annotators", [[], ["neutral"], ["neutral", "", "", "", ""], ["neutral"] * 5])
def test_annotators_that_a_row_did_not_have(tmp_path, annotators):
    for split in ("train", "dev", "test"):
        rows = [snli_cells(*pair, annotators) for pair in PAIRS]
        write_table(tmp_path / f"snli_1.0_{split}.txt", SNLI_TABLE, rows)
    assert len(get_task("snli").load(str(tmp_path), None).splits["train"].labels) == 3


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (
            "neutral\t(\t(\t(\t(\tA man sleeps.\tA man is pla",
            "7 cells, the header has 14: no captionID. .* cut off",
        ),
        ("neutral\t( A ma", "2 cells, the header has 14: no sentence2_binary_parse"),
        ("\t\t", "3 cells, the header has 14"),
        ("\t" * 13, "label '' is not one of"),
    ],
)
def test_a_table_that_is_cut_off(tmp_path, row, named):
    """Half a sentence with the label of the whole is no example."""
    for split in ("train", "dev", "test"):
        rows = [snli_cells(*pair, []) for pair in PAIRS]
        write_table(tmp_path / f"snli_1.0_{split}.txt", SNLI_TABLE, rows)
    with open(tmp_path / "snli_1.0_train.txt", "a") as table:
        table.write(row)
    with pytest.raises(DataError, match=rf"snli_1\.0_train\.txt, line 6: {named}"):
        get_task("snli").load(str(tmp_path), None)
