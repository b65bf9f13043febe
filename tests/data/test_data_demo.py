"""The corpus every machine has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from glomo_dist.data import ShardIndex, prepare_images, prepare_text
from glomo_dist.data.preparing.demo import (
    PACKAGES,
    TASK_CHARACTERS,
    TASK_SIZES,
    Docstring,
    docstring_task_rows,
    docstrings,
    topics,
    write_demo_corpus,
)
from glomo_dist.runtime.errors import DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_corpus(tmp_path_factory.mktemp("demo") / "raw")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_text_is_a_few_million_characters_of_prose(corpus: Path) -> None:
    found = rows(corpus / "text.jsonl")
    texts = [row["text"] for row in found]
    assert 3_000_000 < sum(map(len, texts)) < 20_000_000
    assert len(set(texts)) == len(texts)
    modules = Counter(row["module"] for row in found)
    assert modules["pydoc_data"] == len(topics()) > 50
    assert {"asyncio", "logging", "torch", "numpy"} <= set(modules)
    words = Counter(word for text in texts for word in text.lower().split())
    assert words["the"] > 0.03 * words.total()  # 6 % in English, about none in code


@pytest.mark.slow
def test_task_is_balanced_without_names_and_its_parts_are_apart(corpus: Path) -> None:
    found = rows(corpus / "docstrings.jsonl")
    counts = Counter((row["label"], row["split"]) for row in found)
    labels = {label for label, _ in counts}
    assert 8 <= len(labels) <= 10 and labels <= set(PACKAGES)
    assert all(counts[label, split] == size for label in labels for split, size in TASK_SIZES.items())
    assert len({row["text"] for row in found}) == len(found)
    assert max(len(row["text"]) for row in found) <= TASK_CHARACTERS
    named = re.compile(rf"\b({'|'.join(labels)}|pytorch|np)\b", re.IGNORECASE)
    assert not [row for row in found if named.search(row["text"])]
    held_out = {row["text"][:100] for row in found if row["split"] != "train"}
    corpus_starts = {" ".join(row["text"].split())[:100] for row in rows(corpus / "text.jsonl")}
    assert not held_out & corpus_starts


def test_another_process_finds_the_same_in_the_same_order() -> None:
    """Hash randomisation and the order of directories must not show."""
    code = (
        "from itertools import islice; from glomo_dist.data.preparing.demo import docstrings; "
        "print(list(islice(docstrings(), 900)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and runs[0].count("Docstring(") == 900


@pytest.mark.slow
def test_both_corpora_can_be_prepared(corpus: Path, tmp_path: Path) -> None:
    text = prepare_text([str(corpus / "text.jsonl")], tmp_path / "t", vocab_size=5000, max_documents=300)
    assert ShardIndex.read(text).samples == 300
    with np.load(corpus / "digits.npz") as digits:
        assert digits["images"].shape == (1797, 8, 8) and digits["images"].dtype == np.uint8
        assert digits["images"].max() == 255 and set(digits["labels"]) == set(range(10))
    images = ShardIndex.read(prepare_images([str(corpus / "digits.npz")], tmp_path / "i", bits=4))
    assert (images.samples, images.vocab_size, images.tokens) == (1797, 16, 1797 * 64)


def test_a_link_to_nothing_in_the_library_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slim images of a system have such: their packages keep configuration elsewhere."""
    text = "Return the sum of what is given, as the person who calls it would have written it down. " * 2
    (tmp_path / "sums.py").write_text(f'"""{text}"""')
    (tmp_path / "site.py").symlink_to(tmp_path / "nowhere.py")
    monkeypatch.setattr(
        "sysconfig.get_paths", lambda: dict.fromkeys(("stdlib", "purelib", "platlib"), tmp_path)
    )
    assert [(d.module, d.file) for d in docstrings()] == [("sums", "sums.py")]


def test_no_file_is_in_two_parts_of_the_task() -> None:
    found = []
    for package in PACKAGES[:3]:
        for i in range(1000):
            text = f"Thing {i} of file {i % 97} in {package} does what its long enough description says."
            found.append(Docstring(text, package, f"f{i % 97}"))
    seen: dict[tuple[str, str], set[str]] = {}
    for row in docstring_task_rows(found):
        file = re.search(r"file (\d+)", row["text"]).group(1)
        seen.setdefault((row["label"], file), set()).add(row["split"])
        assert row["label"] not in row["text"] and row["label"] in row["source_text"]
    assert all(len(splits) == 1 for splits in seen.values()) and len(seen) > 100


def test_too_few_docstrings_are_an_error() -> None:
    with pytest.raises(DataError, match=r"too few docstrings.*constraints\.txt"):
        docstring_task_rows([Docstring("text", "numpy", "a.py")])
