"""SQuAD and RACE in the Parquet files of the Hugging Face hub are the sets as their authors publish them."""

from __future__ import annotations

import json

import pytest
from hub_samples import RANDOM, same, text, write

from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.registry import get_task


def squad(folder):
    for part, name in (("train", "train"), ("dev", "validation")):
        articles, rows = [], []
        for number in range(40):
            context = f"{text(9)} {number}"
            asked = [(f"{part}{number}.{i}", text(5), word) for i, word in enumerate(context.split()[2:4])]
            for_json = []
            for key, question, answer in asked:
                at = context.index(answer) + (key == "train3.1")  # one does not stand where the file says
                for_json.append(
                    {"id": key, "question": question, "answers": [{"text": answer, "answer_start": at}] * 2}
                )
                answers = {"text": [answer] * 2, "answer_start": [at] * 2}
                title = f"article {number}"
                rows.append(
                    {"id": key, "title": title, "context": context, "question": question, "answers": answers}
                )
            articles.append(
                {"title": f"article {number}", "paragraphs": [{"context": context, "qas": for_json}]}
            )
        (folder / f"{part}-v1.1.json").write_text(json.dumps({"data": articles}))
        write(folder / f"hub/plain_text/{name}-00000-of-00001.parquet", rows)
    return rows


def test_squad(tmp_path):
    rows = squad(tmp_path)
    data = same("squad", tmp_path / "hub", tmp_path)
    assert data.skipped == {"train: answer not at its place in the paragraph": 1}
    path = tmp_path / "hub/plain_text/validation-00000-of-00001.parquet"
    write(path, [{**rows[0], "answers": {"text": ["a", "b"], "answer_start": [0]}}])
    with pytest.raises(DataError, match=r"row 0: no question of SQuAD \(ValueError"):
        get_task("squad").load(str(tmp_path / "hub"), None)
    write(path, [{**rows[0], "answers": {"text": [], "answer_start": []}}])  # as SQuAD 2.0 has them
    with pytest.raises(DataError, match=r"has no answer\. SQuAD v1\.1 is expected"):
        get_task("squad").load(str(tmp_path / "hub"), None)
    for answer in ({"text": None, "answer_start": 3}, {"text": "a", "answer_start": 3.5}):
        write(path, [{**rows[0], "answers": {key: [value] for key, value in answer.items()}}])
        with pytest.raises(DataError, match="an answer must be a text and its place"):
            get_task("squad").load(str(tmp_path / "hub"), None)
        train = tmp_path / "train-v1.1.json"
        data = json.loads(train.read_text())
        data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0] = answer
        (tmp_path / "bad").mkdir(exist_ok=True)
        for part in ("train", "dev"):
            (tmp_path / f"bad/{part}-v1.1.json").write_text(json.dumps(data))
        with pytest.raises(DataError, match="an answer must be a text and its place"):
            get_task("squad").load(str(tmp_path / "bad"), None)


def test_race(tmp_path):
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        for level in ("middle", "high"):
            (tmp_path / split / level).mkdir(parents=True)
            rows = []
            for number in range(10, 15):
                options = [[text(2) for _ in range(4)] for _ in range(3)]
                article = {"article": text(9), "questions": [text(4) for _ in range(3)], "options": options}
                article["answers"] = list(RANDOM.choice(list("ABCD"), 3))
                (tmp_path / split / level / f"{number}.txt").write_text(json.dumps(article))
                for i in range(3):
                    row = {"example_id": f"{level}{number}.txt", "article": article["article"]}
                    row |= {"question": article["questions"][i], "options": options[i]}
                    rows.append({**row, "answer": article["answers"][i]})
            write(tmp_path / f"hub/{level}/{name}-00000-of-00001.parquet", rows)
    data = same("race", tmp_path / "hub", tmp_path)
    assert len(data.splits["test"].labels) == 30
