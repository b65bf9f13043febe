"""Words and vocabularies."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from privileges import closed, public_folder

from glomo_dist.data.tokenizers.marks import mark
from glomo_dist.data.tokenizers.text import WordTokenizer, between_spaces, tokenize, word_spans
from glomo_dist.data.tokenizers.tokenizer import load_tokenizer, tokenizer_from_json
from glomo_dist.runtime.errors import DataError


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't stop", ["do", "n't", "stop"]),
        ("It’s “well-known” – twice", ["it", "'s", '"', "well", "-", "known", '"', "-", "twice"]),
        ("now—or never", ["now", "-", "or", "never"]),
        ("Ünïcode 3.14 snake_case", ["ünïcode", "3", ".", "14", "snake", "case"]),
        ("  \n", []),
        ("cafe\u0301 CAFE\u0301S", ["café", "cafés"]),
        ("İstanbul'da L'İzmir", ["i\u0307stanbul", "'da", "l", "'", "i\u0307zmir"]),
        ("हिन्दी में।", ["हिन्दी", "में", "।"]),
        ("می\u200cخواهم ශ්\u200dරී র\u200d্য", ["می\u200cخواهم", "ශ්\u200dරී", "র\u200d্য"]),
        ("نه\u200c. \u200cنه a\u200d b", ["نه", "\u200c", ".", "\u200c", "نه", "a", "\u200d", "b"]),
        ("\U0001f469\u200d\U0001f4bb", ["\U0001f469", "\u200d", "\U0001f4bb"]),
        ("x\u030c1y\u030c don't", ["x\u030c1y\u030c", "do", "n't"]),
        ("l'abx\u030c 葛\U000e0100城", ["l", "'", "abx\u030c", "葛\U000e0100城"]),
        ("Ǐ J\u030c", ["ǐ", "ǰ"]),
        ("1\ufe0f\u20e3 ❤\ufe0f (\u0301", ["1", "\ufe0f", "\u20e3", "❤", "\ufe0f", "(", "\u0301"]),
        ("\U0001e923\U0001e944 \U0001f600", ["\U0001e923\U0001e944", "\U0001f600"]),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


def test_units_that_are_cut_already() -> None:
    """WikiText's way to write a hyphen, comma or point in a word is undone, and nothing else that looks like it."""
    text = " Jean @-@  Luc\n1 @,@ 5 2 @.@ 5 @x@ a@-@b İ cafe\u0301"
    units = ["jean", "-", "luc", "1", ",", "5", "2", ".", "5", "@x@", "a@-@b", "i\u0307", "café"]
    assert between_spaces(text) == units


LETTERS = "abnt1_ '\u2019\nÄéİIΣσ.한ᄒ\u1161\u11ab\u0928क\U0001f600"
MARKS = "\u0301\u0307\u0323\u030c\u093f\u0940\ufe0f\u200c\u200d\U0001e944"


@given(st.text(LETTERS + MARKS))
def test_marks_change_no_word_without_one_and_every_spelling_has_the_same_words(text: str) -> None:
    words = tokenize(text)
    for form in ("NFC", "NFD"):
        assert tokenize(unicodedata.normalize(form, text)) == words
    without = "".join(c for c in text if c not in MARKS + "İ")
    pattern = r"[a-z0-9]+(?=n't)|n't|'[a-z]+|[^\W_]+|[^\w\s]"
    lower = unicodedata.normalize("NFC", without.lower()).replace("\u2019", "'")
    assert tokenize(without) == re.findall(pattern, lower)
    # a character beyond the first plane has the slower pattern look at all of them
    assert tokenize(f"{without} \U0001f600")[:-1] == re.findall(pattern, lower)


@given(st.text(LETTERS + MARKS))
def test_spans_of_words_with_marks(text: str) -> None:
    spans, words = word_spans(text), tokenize(text)
    assert len(spans) == len(words) and spans == sorted(spans)
    for (start, end), word in zip(spans, words, strict=True):
        assert start < end
        if word[0].isalnum():  # marks without a letter may have changed places
            (found,) = [w for w in tokenize(text[start:end]) if w[0].isalnum()]
            assert found.replace("ς", "σ") == word.replace("ς", "σ")


def test_spans_of_marks_without_a_letter() -> None:
    assert word_spans("e\u0301 (\u0301") == [(0, 2), (3, 4), (4, 5)]


def test_marks_are_those_of_unicode() -> None:
    one = re.compile(mark())
    for c in map(chr, range(0x300, 0x12000)):
        assert (one.fullmatch(c) is not None) == (unicodedata.category(c) in ("Mn", "Mc"))


@pytest.mark.parametrize("syllable", ["가", "기", "각", "좋", "힣"])
def test_spans_of_syllables_in_parts(syllable: str) -> None:
    parts = unicodedata.normalize("NFD", syllable)
    assert len(parts) > 1 and tokenize(f"{parts} b") == [syllable, "b"]
    assert word_spans(f"{parts} b") == [(0, len(parts)), (len(parts) + 1, len(parts) + 2)]


@pytest.mark.parametrize("before", ["", "x" * 499, "İ"])
@pytest.mark.parametrize("marks", [999, 1000, 1001, 1500])
def test_a_letter_with_more_than_a_thousand_marks_stays_as_it_is(
    before: str, marks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalize = unicodedata.normalize
    text = before + "e" + "\u0301\u0323" * (marks // 2) + "\u0301" * (marks % 2) + " e\u0301 end"
    word = text.lower().removesuffix(" e\u0301 end")
    sizes: list[int] = []

    def counted(form: str, part: str) -> str:
        sizes.append(len(part))
        return normalize(form, part)

    monkeypatch.setattr("unicodedata.normalize", counted)
    assert tokenize(text) == [word if marks > 1000 else normalize("NFC", word), "é", "end"]
    assert marks <= 1000 or max(sizes) <= 1001  # the time to put marks in order is quadratic
    spans = [text[start:end] for start, end in word_spans(text)]
    assert spans == [text.removesuffix(" e\u0301 end"), "e\u0301", "end"]


def test_text_of_many_marks_is_composed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not() -> None:
        raise AssertionError

    monkeypatch.setattr("glomo_dist.data.tokenizers.marks._groups", must_not)
    assert set(tokenize("हिन्दी में " * 2000)) == {"हिन्दी", "में"}
    assert set(tokenize("e\u0301" * 2000 + "\u0301" * 400)) == {"é" * 2000 + "\u0301" * 400}


def test_ascii_needs_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not(*_: object) -> None:
        raise AssertionError

    for name in ("_marked_word", "origins"):
        monkeypatch.setattr(f"glomo_dist.data.tokenizers.text.{name}", must_not)
    monkeypatch.setattr("glomo_dist.data.tokenizers.marks._some_mark", must_not)
    assert tokenize("Don't") == ["do", "n't"] and word_spans("Don't") == [(0, 2), (2, 5)]


def test_vocabulary_is_by_count_then_by_word_and_encodes_unknown_words_as_zero() -> None:
    tokenizer = WordTokenizer.train(["b a b c", "a c d"], size=4)
    assert tokenizer.words == ("<unk>", "a", "b", "c")
    ids = tokenizer.encode("c d A")
    assert ids.dtype == np.int32
    assert ids.tolist() == [3, 0, 1]
    assert tokenizer.encode(["c", "Zebra"]).tolist() == [3, 0]
    assert tokenizer.decode(ids) == ["c", "<unk>", "a"]
    assert WordTokenizer(("<unk>", "A")).encode(["A", "a"]).tolist() == [1, 0], "words are taken as they are"
    assert WordTokenizer.train(["b a b c", "a c d"], size=9, min_count=2).words == ("<unk>", "a", "b", "c")


def test_unknown_marker_in_counts_does_not_become_a_word() -> None:
    assert WordTokenizer.from_counts({"<unk>": 9, "a": 1}, 5).words == ("<unk>", "a")


@pytest.mark.parametrize("number", [-1, 2])
def test_decode_refuses_ids_outside_the_vocabulary(number: int) -> None:
    with pytest.raises(DataError, match=f"id {number} is outside the vocabulary of 2 words"):
        WordTokenizer(("<unk>", "a")).decode([1, number])


def test_empty_texts_are_refused() -> None:
    with pytest.raises(DataError, match="no word"):
        WordTokenizer.train(["", "  "], size=10)
    with pytest.raises(DataError, match=r"size must be at least 2 \(<unk> and a word\), got 1"):
        WordTokenizer.train(["a"], size=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "<unk>"), r"first word must be '<unk>', got \('a',\)"),
        ((), "first word must be '<unk>'"),
        (("<unk>", "a", "b", "b", "c"), "'b' occurs 2 times"),
    ],
)
def test_malformed_vocabularies_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"vocabulary: .*{message}"):
        WordTokenizer(words)


def test_json_round_trip_keeps_the_fingerprint(tmp_path) -> None:
    tokenizer = WordTokenizer(("<unk>", "grün", "a"))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
    assert load_tokenizer(path) == tokenizer
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    other = dataclasses.replace(tokenizer, words=("<unk>", "a", "grün"))
    assert other.fingerprint != tokenizer.fingerprint


def test_a_folder_of_a_tokenizer_that_may_not_be_looked_into() -> None:
    with (
        public_folder() as folder,
        closed(folder),
        pytest.raises(DataError, match=rf"{folder} cannot be read: Permission denied"),
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"words": ["<unk>", "b"]}, "changed after it was written"),
        ({"words": [1]}, "list of strings"),
        ({"version": 2}, "version 2"),
        ({"kind": "wrods"}, "Did you mean 'words'"),
        ({"kind": ["words"]}, "unknown kind of tokenizer"),
        ({"format": "x"}, "not a tokenizer.*Name the tokenizer.json of shards that `glomo prepare` wrote"),
    ],
)
def test_changed_tokenizer_files_are_refused(change: dict, message: str) -> None:
    value = WordTokenizer(("<unk>", "a")).to_json() | change
    with pytest.raises(DataError, match=message) as error:
        tokenizer_from_json(value, "some/tokenizer.json")
    assert "some/tokenizer.json" in str(error.value)
