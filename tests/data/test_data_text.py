"""Words and vocabularies."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from glomo_dist.data.text import WordTokenizer, tokenize
from glomo_dist.data.tokenizer import load_tokenizer, tokenizer_from_json
from glomo_dist.runtime.errors import DataError


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't stop", ["do", "n't", "stop"]),
        ("It’s “well-known” – twice", ["it", "'s", '"', "well", "-", "known", '"', "-", "twice"]),
        ("Ünïcode 3.14 snake_case", ["ünïcode", "3", ".", "14", "snake", "case"]),
        ("  \n", []),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


def test_vocabulary_is_by_count_then_by_word_and_encodes_unknown_words_as_zero() -> None:
    tokenizer = WordTokenizer.train(["b a b c", "a c d"], size=4)
    assert tokenizer.words == ("<unk>", "a", "b", "c")
    ids = tokenizer.encode("c d A")
    assert ids.dtype == np.int32
    assert ids.tolist() == [3, 0, 1]
    assert tokenizer.encode(["c", "Zebra"]).tolist() == [3, 0]
    assert tokenizer.decode(ids) == ["c", "<unk>", "a"]
    assert WordTokenizer.train(["b a b c", "a c d"], size=9, min_count=2).words == ("<unk>", "a", "b", "c")


def test_unknown_marker_in_counts_does_not_become_a_word() -> None:
    assert WordTokenizer.from_counts({"<unk>": 9, "a": 1}, 5).words == ("<unk>", "a")


def test_decode_refuses_ids_outside_the_vocabulary() -> None:
    with pytest.raises(DataError, match="id 2 is outside the vocabulary of 2 words"):
        WordTokenizer(("<unk>", "a")).decode([1, 2])


def test_empty_texts_are_refused() -> None:
    with pytest.raises(DataError, match="no word"):
        WordTokenizer.train(["", "  "], size=10)


@pytest.mark.parametrize("words", [("a", "<unk>"), (), ("<unk>", "a", "a")])
def test_malformed_vocabularies_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="vocabulary"):
        WordTokenizer(words)


def test_json_round_trip_keeps_the_fingerprint(tmp_path) -> None:
    tokenizer = WordTokenizer(("<unk>", "grün", "a"))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
    assert load_tokenizer(path) == tokenizer
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    other = dataclasses.replace(tokenizer, words=("<unk>", "a", "grün"))
    assert other.fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        ({"words": ["<unk>", "b"]}, "changed after it was written"),
        ({"words": [1]}, "list of strings"),
        ({"version": 2}, "version 2"),
        ({"kind": "wrods"}, "Did you mean 'words'"),
        ({"format": "x"}, "not a tokenizer"),
    ],
)
def test_changed_tokenizer_files_are_refused(change: dict, message: str) -> None:
    value = WordTokenizer(("<unk>", "a")).to_json() | change
    with pytest.raises(DataError, match=message) as error:
        tokenizer_from_json(value, "some/tokenizer.json")
    assert "some/tokenizer.json" in str(error.value)
