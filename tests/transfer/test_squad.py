"""SQuAD: the official metric on answers with known values, offsets, bad files, the reader."""

import json
import lzma
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from glomo_dist.data.tokenizers.text import tokenize, word_spans
from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.squad_metric import exact_match, f1, normalized
from glomo_dist.transfer.finetune import run
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.readers.models import ReaderSizes
from glomo_dist.transfer.readers.sequences import Sequences
from glomo_dist.transfer.readers.spans import LONGEST, SpanReader
from glomo_dist.transfer.registry import get_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
PARAGRAPH = "The Norman dynasty's kings (911–1066) ruled İzmir? No: Rouen. They spoke French."


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "overlap"),
    [
        ("The Cat.", ["cat"], 1, 1),
        ("a  cat, an' the dog", ["Cat Dog"], 1, 1),
        ("New York City", ["New York"], 0, 0.8),  # 2 common of 3 and 2: 2·2/5
        ("York", ["New York", "Boston"], 0, 2 / 3),
        ("big big dog", ["big dog dog"], 0, 2 / 3),  # words are counted as often as both have them
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 0),  # both empty when normalised: equal, but no word in common
        ("1,000", ["1000"], 1, 1),
        ("theatre", ["atre"], 0, 0),  # articles are words, not letters
        ("Beyoncé’s", ["Beyoncés"], 0, 0),  # only ASCII punctuation is dropped
    ],
)
def test_metric_is_the_official_one(prediction, golds, exact, overlap):
    assert exact_match(prediction, golds) == exact
    assert f1(prediction, golds) == pytest.approx(overlap)


def test_normalisation_order():
    assert normalized("An a-b  THE\tc!") == "ab c"


@pytest.mark.parametrize(
    "text", [PARAGRAPH, "", " Don’t  STOP—now ", "ΟΔΟΣ ΣΑΣ.", "İİ x İ", "naïve “quote”", "e\u0301İ te\u0301"]
)
def test_word_spans_are_those_of_the_words(text):
    spans = word_spans(text)
    words = tokenize(text)
    assert len(spans) == len(words)
    assert all(0 <= a < b <= len(text) for a, b in spans)
    for (a, b), word in zip(spans, words, strict=True):
        marks = {"’": "'", "“": '"', "”": '"', "–": "-", "—": "-"}
        assert word == "".join(marks.get(c, c) for c in unicodedata.normalize("NFC", text[a:b].lower()))
    assert spans == sorted(spans)


def question(text, start=None, number=0, more=()):
    start = PARAGRAPH.index(text) if start is None else start
    answers = [{"text": text, "answer_start": start}, *({"text": t, "answer_start": 0} for t in more)]
    return {"id": f"q{number}", "question": "Where did they rule?", "answers": answers}


def nested(questions, title="Normans", context=PARAGRAPH):
    return {
        "version": "1.1",
        "data": [{"title": title, "paragraphs": [{"context": context, "qas": questions}]}],
    }


def write_squad(folder, train=None, test=None, articles=60):
    folder.mkdir(exist_ok=True)
    questions = train or [question("Rouen"), question("911–1066")]
    data = [nested(questions, f"article {i}")["data"][0] for i in range(articles)]
    (folder / "train-v1.1.json").write_text(json.dumps({"version": "1.1", "data": data}))
    content = nested(test or [question("İzmir", more=("izmir", "Rouen"))])
    (folder / "dev-v1.1.json").write_text(json.dumps(content))
    return str(folder)


def test_answers_become_words_and_words_answers(tmp_path):
    data = get_task("squad").load(write_squad(tmp_path), None)
    train, test = data.splits["train"], data.splits["test"]
    words = tokenize(PARAGRAPH)
    assert len(train.columns["paragraph"].values) == 1
    assert train.columns["paragraph"].values[0] == words
    for label, text in zip(train.labels[:2], ("Rouen", "911–1066"), strict=True):
        assert words[label[0] : label[1] + 1] == tokenize(text)
        assert train.references[0].text(*label) == text
    assert len(train.labels) + len(data.splits["dev"].labels) == 120
    assert len(data.splits["dev"].labels) % 2 == 0, "articles are held out whole"
    assert test.references[0].text(*test.labels[0]) == "İzmir"
    task = get_task("squad")
    assert task.measure(test, test.labels) == {"f1": 1.0, "exact_match": 1.0}
    rouen = np.array([[words.index("rouen")] * 2])
    assert task.measure(test, rouen) == {"f1": 1.0, "exact_match": 1.0}  # the best of the golds
    assert task.measure(test, rouen - [[2, 0]]) == {
        "f1": pytest.approx(2 / 3),
        "exact_match": 0.0,
    }  # "No: Rouen"
    assert task.measure(test, np.array([[0, 0]])) == {"f1": 0.0, "exact_match": 0.0}


def test_answers_that_are_not_there_are_counted(tmp_path):
    wrong = [
        question("Rouen", 3, 1),
        question("Paris", 0, 2),
        question("Rouen", -5, 3),
        question("Rouen", 10**9, 4),
    ]
    source = write_squad(tmp_path, [question("Rouen"), *wrong], [question("Rouen"), question("Paris", 0)])
    data = get_task("squad").load(source, None)
    assert len(data.splits["train"].labels) + len(data.splits["dev"].labels) == 60
    assert data.skipped == {
        "train: answer not at its place in the paragraph": 240,
        "test: answer not at its place in the paragraph (kept)": 1,
    }
    assert get_task("squad").measure(data.splits["test"], data.splits["test"].labels)["f1"] == 0.5


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (json.dumps(nested([{**question("Rouen"), "answers": []}])), r"question q0: has no answer"),
        (json.dumps(nested([{"id": "q0", "question": "?"}])), r"not SQuAD's JSON.*KeyError: 'answers'"),
        (
            json.dumps(nested([{**question("Rouen"), "question": 5}])),
            "question q0 and its paragraph must be texts",
        ),
        (json.dumps(nested([question("Rouen")]))[:-9], "not SQuAD's JSON.*JSONDecodeError"),
        (json.dumps([]), "not SQuAD's JSON"),
        (
            json.dumps(nested([{**question("Rouen"), "question": " "}])),
            "question q0: the question has no word in it",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, content, named):
    source = write_squad(tmp_path)
    (tmp_path / "dev-v1.1.json").write_text(content)
    with pytest.raises(DataError, match=rf"dev-v1\.1\.json.*{named}"):
        get_task("squad").load(source, None)


def test_parts_of_the_dev_set(tmp_path):
    for split in ("train", "dev", "test"):
        content = json.dumps(nested([question("Rouen")])).encode()
        (tmp_path / f"squad_v1.1_devset_part_{split}.json.xz").write_bytes(lzma.compress(content))
    data = get_task("squad").load(str(tmp_path), None)
    assert [len(s.labels) for s in data.splits.values()] == [1, 1, 1]
    (tmp_path / "squad_v1.1_train_sample.json").write_text(json.dumps(nested([question("French")])))
    assert len(get_task("squad").load(str(tmp_path), None).splits["train"].labels) == 2


@pytest.mark.parametrize("cell", ["gru", "lstm", "bag"])
def test_reader_ignores_padding(cell):
    torch.manual_seed(0)
    reader = SpanReader(ReaderSizes(3, 4, 0, 0.3, cell)).eval()
    p, q = torch.randn(3, 6, 3), torch.randn(3, 5, 3)
    n, m = torch.tensor([6, 3, 1]), torch.tensor([1, 5, 2])
    together = reader(Sequences(p, n), Sequences(q, m))
    assert together.shape == (3, 2, 6)
    for i in range(3):
        alone = reader(
            Sequences(p[i : i + 1, : n[i]], n[i : i + 1]), Sequences(q[i : i + 1, : m[i]], m[i : i + 1])
        )
        torch.testing.assert_close(alone[0], together[i, :, : n[i]])
        assert together[i, :, n[i] :].isneginf().all()


def test_reader_is_the_written_formula():
    torch.manual_seed(0)
    reader = SpanReader(ReaderSizes(3, 4, 0, 0.3)).eval()

    def states(layer, units):  # [T, width] -> [T, 2 · hidden]
        return layer(Sequences(units[None], torch.tensor([len(units)])))[:, 0]

    def scores(layer, a, b):
        rows = [torch.cat([layer.a(x) + layer.b(y) + layer.product @ (x * y) for y in b]) for x in a]
        return torch.stack(rows)

    paragraph, question = torch.randn(5, 3), torch.randn(2, 3)
    p, q = states(reader.encode, paragraph), states(reader.encode, question)
    flow = scores(reader.flow, p, q)
    asked, heard = flow.softmax(1) @ q, flow.amax(1).softmax(0) @ p
    read = reader.merge(torch.cat([p, asked, p * asked, asked * heard], -1)).relu()
    again = states(reader.again, read)
    found = scores(reader.own, again, again).fill_diagonal_(float("-inf")).softmax(1) @ again
    read = read + reader.residual(torch.cat([again, found, again * found], -1)).relu()
    first = states(reader.first, read)
    last = states(reader.last, torch.cat([first, read], -1))
    expected = torch.stack([score(x)[:, 0] for score, x in zip(reader.score, (first, last), strict=True)])
    given = (Sequences(x[None], torch.tensor([len(x)])) for x in (paragraph, question))
    torch.testing.assert_close(reader(*given)[0], expected)


def test_loss_leaves_out_answers_beyond_the_cut_and_spans_are_short():
    reader = SpanReader(ReaderSizes(3, 4, 0, 0.0))
    T = LONGEST + 8
    logits = torch.randn(3, 2, T)
    logits[2, :, 5:] = float("-inf")  # a paragraph of five words
    labels = torch.tensor([[1, 3], [2, T], [4, 5]])
    expected = -(logits[0].log_softmax(-1)[0, 1] + logits[0].log_softmax(-1)[1, 3]) / 3
    torch.testing.assert_close(reader.loss(logits, labels), expected)
    assert reader.loss(logits[1:], labels[1:]) == 0
    assert reader.loss(torch.full_like(logits, float("nan")), labels).isnan(), "no answer beyond a cut"
    logits = torch.zeros(2, 2, T)
    logits[0, 0, 2], logits[0, 1, 1], logits[0, 1, 4] = 5, 7, 3  # the end before the start does not count
    logits[1, 0, 0], logits[1, 1, LONGEST], logits[1, 1, LONGEST - 1] = 5, 9, 3
    assert reader.predict(logits).tolist() == [[2, 4], [1, LONGEST]]


def test_from_files_to_a_result(tmp_path):
    fields = {
        "task_source": write_squad(tmp_path, articles=30),
        "hidden": 8,
        "epochs": 4,
        "patience": 4,
        "lr": 1e-2,
    }
    result = run(FinetuneJob("squad", "uniform", **fields))
    assert result.metric == "f1"
    assert set(result.metrics) == {"f1", "exact_match"}
    assert result.majority is None
    assert result.curve[-1].train_loss < result.curve[0].train_loss
    # cut before any answer: nothing can be learned, but nothing breaks
    cut = run(FinetuneJob("squad", "none", max_units=2, **{**fields, "epochs": 1}))
    assert cut.curve[0].train_loss == 0


@shared
def test_shared_squad():
    data = get_task("squad").load(str(SHARED), None)
    assert {name: len(s.labels) for name, s in data.splits.items()} == {
        "train": 11396,
        "dev": 841,
        "test": 1255,
    }
    assert data.skipped == {}
    test = data.splits["test"]
    found = get_task("squad").measure(test, test.labels)
    assert found["f1"] > 0.97  # words do not always end where the answer does
    assert found["exact_match"] > 0.95
