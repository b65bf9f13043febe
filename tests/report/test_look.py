"""`glomo draw`: what a predictor sees in texts and images of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from page_tags import HOSTILE, Tags, self_contained
from PIL import Image
from transfer_samples import word_model

from glomo_dist.cli import main
from glomo_dist.data.tokenizers.pixels import PixelTokenizer
from glomo_dist.model import Glomo, GlomoConfig, load_model, save_model
from glomo_dist.report.look import look
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return word_model(tmp_path_factory.mktemp("words") / "model")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    tokenizer = PixelTokenizer(4, 6, 3, 2)
    torch.manual_seed(0)
    config = GlomoConfig(
        vocab_size=tokenizer.vocab_size, width=8, heads=2, layers=1, sparsity="relu", image=(4, 6)
    )
    folder = tmp_path_factory.mktemp("pixels") / "model"
    save_model(folder, Glomo(config), tokenizer.to_json())
    return folder


def counted_slowly(graph, side):
    """Edges per row, share of empty rows and mean distance of a dense [T, T] graph, row by row."""
    T = len(graph)
    rows = range(1, T) if side == "before" else range(T - 1)
    edges = [int((graph[i] > 0).sum()) for i in rows]
    weights = [(float(graph[i, j]), abs(i - j)) for i in rows for j in range(T) if graph[i, j] > 0]
    total = sum(w for w, _ in weights)
    distance = f"{sum(w * d for w, d in weights) / total:.1f}" if total else "–"
    return f"{sum(edges) / len(edges):.1f}", f"{edges.count(0) / len(edges):.0%}", distance


@pytest.mark.parametrize("keep", [None, 1])
def test_the_numbers_are_those_of_the_graphs(words, tmp_path, keep):
    (seen,) = look(words, ["the good film the voice film good"], tmp_path / "g.html", keep=keep)
    model = load_model(words)[0]
    ids = torch.tensor([[5, 2, 1, 5, 3, 1, 2]])
    before, after = (g.dense()[0].detach().numpy() for g in model.graphs(ids, torch.tensor([7]), keep=keep))
    assert seen.rows == tuple(
        (
            f"layer {c // 2}, head {c % 2}",
            *counted_slowly(before[c], "before"),
            *counted_slowly(after[c], "after"),
        )
        for c in range(4)
    )
    assert any(row[2] != "0%" for row in seen.rows) and not seen.notes


def test_the_page_needs_nothing_else_and_says_what_was_not_seen(words, tmp_path):
    texts = [HOSTILE, "the film " * 5000, "good"]  # longer than any name of a file
    first, second, third = look(words, texts, tmp_path / "g.html", max_units=10)
    source = (tmp_path / "g.html").read_text(encoding="utf-8")
    page = Tags(source)
    self_contained(page, source)
    assert HOSTILE in page.text
    assert any(note.startswith("Not in the vocabulary: <, >, alert, (,") for note in first.notes)
    assert second.notes == ("The first 10 of 10,000 words (--max-units).",) and not third.notes
    assert all(row[1:] == ("0.0", "100%", "–", "0.0", "100%", "–") for row in third.rows)


def test_texts_that_are_cut_already(tmp_path):
    model = word_model(tmp_path / "model", ("se", "##c", "#", "c"))
    (cut,), (taken,) = (look(model, ["SE ##c"], tmp_path / "g.html", tokenised=t) for t in (False, True))
    assert not taken.notes and taken.rows != cut.rows, "two units, not four"


def test_images_are_brought_to_the_size_that_the_predictor_knows(pixels, tmp_path):
    for number in range(3):
        grey = np.full((9, 9), 80 * number, np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    seen = look(pixels, [str(tmp_path)], tmp_path / "g.html", images=2)
    assert [one.drawing.title for one in seen] == [str(tmp_path / f"{i}.png") for i in range(2)]
    assert [len(one.rows) for one in seen] == [2, 2]
    assert "What four pixels" in (tmp_path / "g.html").read_text(encoding="utf-8")


def test_a_random_predictor_sees_other_graphs(words, tmp_path):
    text = ["the good film the voice film good"]
    trained, again, random = (
        look(words, text, tmp_path / "g.html", random_seed=seed)[0].drawing.figures
        for seed in (None, None, 3)
    )
    assert trained == again != random
    assert "random parameters of seed 3" in (tmp_path / "g.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (["good film", " \n"], ConfigError, r"text 2 \(' \\n'\) has no word in it"),
        (["{file}"], ConfigError, r"is a file, .* one of words\. Give the texts themselves, .*cat"),
    ],
)
def test_what_is_no_text_is_refused(words, tmp_path, inputs, error, message):
    (tmp_path / "review.txt").write_text("good film")
    inputs = [text.format(file=tmp_path / "review.txt") for text in inputs]
    with pytest.raises(error, match=message):
        look(words, inputs, tmp_path / "g.html")
    assert not (tmp_path / "g.html").exists()


def test_what_is_no_image_is_refused(pixels, tmp_path):
    with pytest.raises(DataError, match="A gentle film"):
        look(pixels, ["A gentle film"], tmp_path / "g.html")
    with pytest.raises(GlomoError, match=r"is a folder; .*graphs\.html"):
        look(pixels, ["A gentle film"], tmp_path)


def test_the_command(words, tmp_path, capfd):
    out = tmp_path / "g.html"
    assert main(["draw", str(words), "The good film.", "--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines()[0] == "The good film." and "layer 1, head 1" in printed.out
    assert str(out) in printed.err and out.is_file()
    for arguments, message in (
        (["draw", str(words)], "nothing to draw"),
        (["draw", str(words), "film", "--keep", "0"], "draw: keep must be at least 1 or none, got 0"),
        (["draw", str(words), "film", "--random-seed", str(2**64)], "random_seed must be from"),
        (["draw", str(tmp_path), "film"], "holds no model"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "other.html")]) == 2
        assert message in capfd.readouterr().err
    assert not (tmp_path / "other.html").exists()
