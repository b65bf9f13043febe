"""What prepare refuses before it writes: settings, tokenizers, texts and outputs that do not go together."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from glomo_dist.data import (
    load_tokenizer,
    prepare_images,
    prepare_text,
)
from glomo_dist.data.prepare import BITS, MIN_COUNT, VOCAB_SIZE
from glomo_dist.data.preparing.demo import write_demo_corpus
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError


def test_full_output_folder_is_not_touched(corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(GlomoError, match="out is not empty"):
        prepare_text([corpus], out)
    with pytest.raises(GlomoError, match="out is not empty"):
        prepare_images([corpus], out)
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_texts_of_which_a_tokenizer_knows_little(
    corpus: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = prepare_text([corpus], tmp_path / "known", vocab_size=4)
    other = tmp_path / "b.txt"
    other.write_text("Zwölf Boxkämpfer jagen Viktor")
    with pytest.raises(DataError, match=r"b\.txt: not one word is in the vocabulary of .*known.* <unk>"):
        prepare_text([str(other)], tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()
    other.write_text(f"Boxkämpfer jagen {load_tokenizer(tokenizer).words[1]}")
    prepare_text([str(other)], tmp_path / "out", tokenizer=tokenizer)
    assert "WARNING: 67 % of the words will be <unk>" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({"valid_share": 1.0}, "valid_share"),
        ({"max_documents": 0}, "max_documents"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"vocab_size": 10**23}, "vocab_size must be a whole number from 2 .* to 2,147,483,648"),
        ({"max_documents": 10**23}, "max_documents must be a whole number from 1 to"),
        ({"shard_bytes": 1}, "shard_bytes.*--shard-mib"),
        ({"workers": 0}, "workers"),
        *(
            ({name: value}, f"{name} must be a whole number from .* got {value}")
            for name in ("max_documents", "vocab_size", "min_count", "shard_bytes", "workers")
            for value in (True, 2048.0)
        ),
    ],
)
def test_bad_settings(corpus: str, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_text([corpus], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_size_of_shards_is_checked_before_reading(tmp_path: Path) -> None:
    for prepare in (prepare_text, prepare_images):
        with pytest.raises(ConfigError, match="--shard-mib"):
            prepare([str(tmp_path / "missing.txt")], tmp_path / "out", shard_bytes=0)


def test_output_that_cannot_be_made(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GlomoError, match=r"out lies below .*corpus\.jsonl, which is a file"):
        prepare_text([corpus], Path(corpus) / "sub" / "out")
    with pytest.raises(GlomoError, match="cannot write /proc/glomo/out: No such file"):
        prepare_text([corpus], "/proc/glomo/out")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("glomo_dist.runtime.files.sync_tree", full)
    with pytest.raises(GlomoError, match=r"cannot write .*out: No space left on device\. Free space"):
        prepare_text([corpus], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_output_that_cannot_be_made_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("was read")

    for name in (
        "prepare.load_tokenizer",
        "prepare.documents",
        "prepare.pictures",
        "preparing.demo.docstrings",
    ):
        monkeypatch.setattr(f"glomo_dist.data.{name}", read)
    out = "/proc/glomo/out"
    for prepare in (
        lambda: prepare_text(["missing.txt"], out, tokenizer="missing"),
        lambda: prepare_images(["missing"], out),
        lambda: prepare_images(["missing"], out, tokenizer="missing"),
        lambda: write_demo_corpus(out),
    ):
        with pytest.raises(GlomoError, match="cannot write /proc/glomo/out: No such file"):
            prepare()


def test_settings_without_effect_are_refused(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"min_count must be a whole number from 1 .* got 0"):
        prepare_text([corpus], tmp_path / "out", min_count=0)
    for setting in (
        {"vocab_size": 9},
        {"min_count": 2},
        {"vocab_size": VOCAB_SIZE},
        {"min_count": MIN_COUNT},
    ):
        with pytest.raises(ConfigError, match="a tokenizer has its own"):
            prepare_text([corpus], tmp_path / "out", tokenizer=tmp_path, **setting)
    plain = tmp_path / "a.txt"
    plain.write_text("one fish")
    for file, setting, kinds in (
        (corpus, {"split": "line"}, r"split \(--split\) is for files of \.txt or \.tokens"),
        (plain, {"text_key": "body"}, r"text_key \(--text-key\) is for files of \.jsonl or \.parquet"),
    ):
        with pytest.raises(ConfigError, match=rf"{kinds}, and the inputs have none\. Leave it out\."):
            prepare_text([file], tmp_path / "out", **setting)
    prepare_text([corpus, plain], tmp_path / "both", split="line")
    for setting in ({"bits": 2}, {"bits": BITS}, {"size": (2, 2)}, {"channels": 1}):
        with pytest.raises(ConfigError, match="are those of the tokenizer"):
            prepare_images([corpus], tmp_path / "out", tokenizer=tmp_path, **setting)


def test_texts_of_single_words_are_refused(tmp_path: Path) -> None:
    """As images of one colour are: a unit is predicted from those before it."""
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    with pytest.raises(DataError, match=r"a\.txt has two words, so there is nothing to predict.*--split"):
        prepare_text([path], tmp_path / "out", split="line")
    assert not (tmp_path / "out").exists()
    path.write_text("\n".join(map(str, range(100))) + "\none fish")  # which falls into `train`
    with pytest.raises(DataError, match=r"no document of .*a\.txt in the part 'valid' has two words"):
        prepare_text([path], tmp_path / "out", split="line", valid_share=0.1)
    prepare_text([path], tmp_path / "out", split="line")


def test_tokenizers_of_the_wrong_kind(corpus: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    images = prepare_images([str(tmp_path / "images.npz")], tmp_path / "images")
    text = prepare_text([corpus], tmp_path / "text")
    with pytest.raises(DataError, match="tokenizer of pixels, text needs one of words"):
        prepare_text([corpus], tmp_path / "out", tokenizer=images)
    with pytest.raises(DataError, match="tokenizer of words, images need one of pixels"):
        prepare_images([str(tmp_path / "images.npz")], tmp_path / "out", tokenizer=text)
