"""Question answering: RACE in its published layout, its bad articles, the reader."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.readers.choice import ChoiceReader
from glomo_dist.transfer.readers.models import ReaderSizes
from glomo_dist.transfer.readers.sequences import Sequences
from glomo_dist.transfer.registry import get_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")

ARTICLE = {
    "article": "Tom has a dog. The dog is black.",
    "questions": ["What has Tom?", "The dog is _ ."],
    "options": [["a cat", "a dog", "a car", "none"], ["red", "", "black", "blue"]],
    "answers": ["B", "C"],
    "id": "high1.txt",
}


def write_race(folder, article=ARTICLE):
    for split in ("train", "dev", "test"):
        for level in ("middle", "high"):
            (folder / split / level).mkdir(parents=True)
            (folder / split / level / "1.txt").write_text(
                json.dumps(article if split == "train" else ARTICLE)
            )
    return str(folder)


def test_race_folder(tmp_path):
    data = get_task("race").load(write_race(tmp_path / "RACE"), None)
    test = data.splits["test"]
    assert test.labels.tolist() == [1, 2, 1, 2]
    assert test.groups == ("middle", "middle", "high", "high")
    assert len(test.columns["article"].values) == 1, "the article of all four questions is there once"
    assert test.columns["article"].of.tolist() == [[0]] * 4
    options = [[test.columns["options"].values[v] for v in row] for row in test.columns["options"].of]
    assert options[1] == [["red"], [], ["black"], ["blue"]]
    assert options[0] == options[2]
    questions = test.columns["question"]
    assert questions.values[questions.of[1, 0]] == ["the", "dog", "is", "…", "."], "the gap has its place"
    assert get_task("race").load(str(tmp_path), None).fingerprint == data.fingerprint  # its parent
    found = get_task("race").measure(test, np.array([1, 2, 0, 2]))
    assert found == {"accuracy": 0.75, "accuracy.middle": 1.0, "accuracy.high": 0.5}


def test_race_folder_in_any_place(tmp_path, monkeypatch):
    plain = get_task("race").load(write_race(tmp_path / "plain"), None)
    monkeypatch.chdir(tmp_path / "plain")
    assert get_task("race").load("", None).fingerprint == plain.fingerprint
    odd = Path(write_race(tmp_path / "sets.jsonl [v1] *?" / "RACE"))
    (odd / "dev" / "high" / "._1.txt").write_bytes(b"\0\5\x16\7\0Mac OS X")
    assert get_task("race").load(str(odd), None).fingerprint == plain.fingerprint
    (odd / "test" / "middle" / "1.txt").unlink()
    with pytest.raises(DataError, match=r"test/middle has no \.txt file; unpack the set again"):
        get_task("race").load(str(odd), None)


def test_race_jsonl(tmp_path):
    for part in ("train", "dev"):
        for level in ("middle", "high"):
            rows = [ARTICLE] if part == "train" else [{**ARTICLE, "part": p} for p in ("dev", "test")]
            path = tmp_path / f"race_{part}_{level}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = get_task("race").load(str(tmp_path), None)
    assert [s.labels.tolist() for s in data.splits.values()] == [[1, 2, 1, 2]] * 3
    (tmp_path / "race_train_extra.jsonl").write_text(json.dumps(ARTICLE) + "\n")
    train = get_task("race").load(str(tmp_path), None).splits["train"]
    assert len(train.labels) == 6
    assert set(get_task("race").measure(train, train.labels)) == {
        "accuracy",
        "accuracy.middle",
        "accuracy.high",
    }
    (tmp_path / "race_dev_high.jsonl").write_text(json.dumps(ARTICLE) + "\n")
    with pytest.raises(DataError, match=r"race_dev_high\.jsonl, line 1: part must be one of"):
        get_task("race").load(str(tmp_path), None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"answers": ["B", "E"]}, "question 2: answer 'E' is not one of A, B, C, D"),
        (
            {"answers": ["B"]},
            "expected an article and as many questions as options and answers. Correct or remove",
        ),
        (
            {"options": [["a", "b", "c"], ["a", "b", "c", "d"]]},
            r"question 1: expected 4 options, got \['a'.* Correct or remove",
        ),
        (
            {"options": [["a", "b", "c", 4], ["a", "b", "c", "d"]]},
            "question 1: question and options must be texts. Correct or remove",
        ),
        ({"article": ""}, "question 1: the article has no word in it"),
        ({"article": None}, "expected an article"),
    ],
)
def test_race_bad_articles(tmp_path, change, named):
    source = write_race(tmp_path / "RACE", {**ARTICLE, **change})
    with pytest.raises(DataError, match=rf"train/middle/1\.txt.*{named}"):
        get_task("race").load(source, None)


def test_race_damaged_files(tmp_path):
    source = write_race(tmp_path / "RACE")
    file = tmp_path / "RACE" / "dev" / "high" / "1.txt"
    file.write_text(json.dumps(ARTICLE)[:-5])
    with pytest.raises(DataError, match=r"dev/high/1\.txt: not a JSON object"):
        get_task("race").load(source, None)
    file.write_text(json.dumps({k: v for k, v in ARTICLE.items() if k != "answers"}))
    with pytest.raises(DataError, match=r"dev/high/1\.txt: key 'answers' is missing"):
        get_task("race").load(source, None)
    file.write_text("[]")
    with pytest.raises(DataError, match=r"dev/high/1\.txt: key 'article' is missing"):
        get_task("race").load(source, None)


def test_choice_reader_is_the_written_formula():
    torch.manual_seed(0)
    reader = ChoiceReader(ReaderSizes(3, 4, 2, 0.5)).eval()
    texts = [Sequences(torch.randn(1, n, 3), torch.tensor([n])) for n in (6, 3, 2, 2)]
    article, question, *options = texts
    read = reader.states(article)[:, 0]  # [T, 2 · hidden]
    asked, *offered = (reader.pool(reader.states(text), text.real)[0] for text in (question, *options))
    expected = []
    for option in offered:
        found = (read @ reader.query(torch.cat([asked, option]))).softmax(0) @ read
        together = torch.cat([found, option, found * option, found * asked])
        expected.append(reader.score(reader.agree(together).tanh()))
    both = Sequences(torch.cat([option.units for option in options]), torch.tensor([2, 2]))
    torch.testing.assert_close(reader(article, question, both)[0], torch.cat(expected))


def test_choice_reader_ignores_padding_and_follows_the_options():
    torch.manual_seed(0)
    reader = ChoiceReader(ReaderSizes(3, 4, 4, 0.0)).eval()
    article, question, options = torch.randn(2, 7, 3), torch.randn(2, 4, 3), torch.randn(8, 5, 3)
    n = torch.tensor([7, 3]), torch.tensor([2, 4]), torch.tensor([1, 2, 3, 4, 5, 0, 2, 3])
    together = reader(*(Sequences(x, k) for x, k in zip((article, question, options), n, strict=True)))
    assert together.shape == (2, 4)
    order = torch.tensor([2, 0, 3, 1])
    for i in range(2):
        of = 4 * i + order
        alone = reader(
            Sequences(article[i : i + 1, : n[0][i]], n[0][i : i + 1]),
            Sequences(question[i : i + 1, : n[1][i]], n[1][i : i + 1]),
            Sequences(options[of].masked_fill((torch.arange(5) >= n[2][of, None])[..., None], 0), n[2][of]),
        )
        keep = n[2][of] > 0  # an empty option reads the padding that features leave zero
        torch.testing.assert_close(alone[0][keep], together[i, order][keep])


def test_race_from_files_to_a_result(tmp_path):
    fields = {"task_source": write_race(tmp_path / "RACE"), "epochs": 1, "hidden": 4, "batch_size": 3}
    result = run(FinetuneJob("race", "uniform", **fields))
    assert set(result.metrics) == {"accuracy", "accuracy.middle", "accuracy.high"}
    assert result.examples == {"train": 4, "dev": 4, "test": 4}


@shared
def test_shared_race_has_the_sizes_it_says():
    data = get_task("race").load(str(SHARED), 200)
    assert {len(s.labels) for s in data.splits.values()} == {200}
    assert set(data.splits["test"].groups) == {"middle", "high"}
    assert data.classes == ("A", "B", "C", "D")
