"""CSV as spreadsheets and pandas write it, and the task in the documentation that reads it."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import pytest

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.rows import csv_rows, table
from glomo_dist.transfer.registry import find_task

DOCS = Path(__file__).resolve().parents[2] / "docs" / "transfer.md"


def test_quotes_separators_and_line_breaks_in_cells(tmp_path):
    path = tmp_path / "rows.csv"
    content = '\ufefftext,label\r\n"a, ""b""\r\nand c",1\r\n\r\n,0\r\nplain \'d\',1'
    path.write_bytes(content.encode())
    expected = [
        (f"{path}, line 2", {"text": 'a, "b"\nand c', "label": "1"}),
        (f"{path}, line 5", {"text": "", "label": "0"}),
        (f"{path}, line 6", {"text": "plain 'd'", "label": "1"}),
    ]
    assert list(csv_rows(str(path), ("label",))) == expected
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(content.encode()))
    assert [row for _, row in csv_rows(f"{path}.gz")] == [row for _, row in expected]
    path.write_text("1;a,b\n", encoding="utf-8")
    named = csv_rows(str(path), header=("label", "text"), delimiter=";")
    assert list(named) == [(f"{path}, line 1", {"label": "1", "text": "a,b"})]
    (tmp_path / "rows.tsv").write_text('label\ttext\n\t\n1\t"a\tb"\n', encoding="utf-8")
    tabs = csv_rows(
        str(tmp_path / "rows.tsv"), delimiter="\t"
    )  # cells without anything are some all the same
    assert [row for _, row in tabs] == [{"label": "", "text": ""}, {"label": "1", "text": "a\tb"}]
    document = "word " * 40_000  # longer than Python's csv reads if it is not told to
    path.write_text(f'text,label\n"{document}",1\n', encoding="utf-8")
    assert [row["text"] for _, row in csv_rows(str(path))] == [document]


def test_empty_cells_at_the_end_of_a_line_of_a_table(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("a\t\t\r\n\t\n \nb\t c\t \n", encoding="utf-8")
    assert [cells for _, cells in table(str(path))] == [["a", "", ""], ["", ""], ["b", " c", " "]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "text,label\nfine, really,1\n",
            r"line 2: 3 cells, expected 2 \(text, label\)\. A cell with ',' in it",
        ),
        ("text,label\nfine\n", r"line 2: 1 cell, expected 2 \(text, label\)"),
        (
            'text,label\nfine,1\n"open,1\nfine,0\n',
            r"line 3: not CSV \(unexpected end of data\)\. Are all quotes",
        ),
        ('text,label\n"a "b" c",1\n', r"line 2: not CSV .*Are all quotes closed"),
        ("text,text,label\n", r"line 1: two columns are called 'text'"),
        (
            "sentence,label\n",
            r"line 1: key 'text' is missing; the row has sentence, label\. .*give them as `header`",
        ),
        ("text,label\n\xe9,1\n".encode("latin-1"), "line 2, byte 1 of the line .*not UTF-8"),
    ],
)
def test_what_is_no_csv_is_refused_with_its_line(tmp_path, content, words):
    path = tmp_path / "rows.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        list(csv_rows(str(path), ("text", "label")))


def test_the_task_in_the_documentation(tmp_path):
    code = re.search(r"```python\n# tasks/agnews.py\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "agnews.py").write_text(code[1], encoding="utf-8")
    for split, size in (("train", 200), ("test", 10)):
        with open(tmp_path / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["Class Index", "Title", "Description"])
            writer.writerows([i % 4 + 1, f"Title, {i}", f'Said "x"\nof {i}'] for i in range(size))
    task, _ = find_task(str(tmp_path / "agnews.py"))
    data = task.load(str(tmp_path), None)
    sizes = {name: len(split.labels) for name, split in data.splits.items()}
    assert sizes["train"] + sizes["dev"] == 200 and 0 < sizes["dev"] < 30 and sizes["test"] == 10
    test = data.splits["test"]
    assert test.columns["text"].values[1] == ["title", ",", "1", "said", '"', "x", '"', "of", "1"]
    assert test.labels.tolist() == [i % 4 for i in range(10)]
