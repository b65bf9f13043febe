"""From raw texts to shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from document_samples import TEXTS
from web_faults import serving

from glomo_dist.cli import main
from glomo_dist.data import (
    ShardIndex,
    load_tokenizer,
    prepare_images,
    prepare_text,
    read_metadata,
    read_sample,
    tokenize,
)
from glomo_dist.data.preparing.sources import Document
from glomo_dist.data.preparing.spool import chunks
from glomo_dist.runtime.errors import DataError, ShardError


def all_words(folder: Path) -> list[list[str]]:
    index = ShardIndex.read(folder, verify=True)
    tokenizer = index.load_tokenizer()
    return [tokenizer.decode(read_sample(index, i)) for i in range(index.samples)]


def test_text_goes_in_and_comes_out(corpus: str, tmp_path: Path) -> None:
    out = prepare_text([corpus], tmp_path / "out", shard_bytes=32_768)
    assert all_words(out) == [tokenize(text) for text in TEXTS]
    index = ShardIndex.read(out)
    assert len(index.shards) > 1
    assert read_metadata(index, 5) == {"source": "corpus.jsonl", "row": 6}
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["index.json", "tokenizer.json", *(shard.name for shard in index.shards)]
    )


def test_rare_words_become_unknown(corpus: str, tmp_path: Path) -> None:
    out = prepare_text([corpus], tmp_path / "out", vocab_size=4)
    counts = Counter(word for text in TEXTS for word in tokenize(text))
    kept = sorted(counts, key=lambda w: (-counts[w], w))[:3]
    assert load_tokenizer(out).words == ("<unk>", *kept)
    expected = [[w if w in kept else "<unk>" for w in tokenize(text)] for text in TEXTS]
    assert all_words(out) == expected
    assert len(load_tokenizer(prepare_text([corpus], tmp_path / "o2", min_count=60)).words) < 12


def test_the_result_does_not_depend_on_place_processes_or_memory(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ShardIndex.read(prepare_text([corpus], tmp_path / "one"))
    two = ShardIndex.read(prepare_text([str(tmp_path / "c*.jsonl")], tmp_path / "two", workers=2))
    monkeypatch.setattr("glomo_dist.data.preparing.spool._SPOOL_BLOCK", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))  # it may be small: nothing goes there
    three = ShardIndex.read(prepare_text([corpus], tmp_path / "three"))
    assert one.fingerprint == two.fingerprint == three.fingerprint


def test_the_same_ids_of_other_words_are_other_data(tmp_path: Path) -> None:
    found = []
    for text in ("one two", "a b"):
        (tmp_path / "a.txt").write_text(text)
        out = prepare_text([str(tmp_path / "a.txt")], tmp_path / text)
        found.append(ShardIndex.read(out))
        assert read_sample(found[-1], 0).tolist() == [1, 2]
    assert found[0].shards[0].sha256 == found[1].shards[0].sha256
    assert found[0].fingerprint != found[1].fingerprint


def test_documents_come_to_a_worker_in_groups_of_a_million_characters() -> None:
    found = chunks(Document("a" * length, "", row) for row, length in enumerate([3 << 18] * 5 + [1 << 21, 1]))
    assert [[document.row for document in chunk] for chunk in found] == [[0, 1], [2, 3], [4, 5], [6]]


def test_a_given_tokenizer_is_used_as_it_is(corpus: str, tmp_path: Path) -> None:
    first = prepare_text([corpus], tmp_path / "one", vocab_size=5)
    other = tmp_path / "other.txt"
    other.write_text("the whale ran")
    second = prepare_text([str(other)], tmp_path / "two", tokenizer=first / "tokenizer.json")
    assert load_tokenizer(second) == load_tokenizer(first)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(first)
    assert load_tokenizer(tmp_path / "run") == load_tokenizer(first)
    assert ShardIndex.read(second).tokenizer == ShardIndex.read(first).tokenizer
    assert all_words(second)[0][0] == "the" and all_words(second)[0][1] == "<unk>"


def test_validation_share_is_a_part_of_the_documents_and_copies_stay_together(
    corpus: str, tmp_path: Path
) -> None:
    double = tmp_path / "double.jsonl"
    double.write_text(Path(corpus).read_text())
    out = prepare_text([corpus, str(double)], tmp_path / "out", valid_share=0.3)
    train, valid = all_words(out / "train"), all_words(out / "valid")
    assert Counter(map(tuple, train + valid)) == Counter(tuple(tokenize(t)) for t in TEXTS * 2)
    assert not set(map(tuple, train)) & set(map(tuple, valid))
    assert 0.15 < len(valid) / (2 * len(TEXTS)) < 0.45
    chosen = [i for i, text in enumerate(TEXTS) if tokenize(text) in valid]
    assert chosen[:5] == [0, 1, 7, 8, 9], "the same documents in every version"
    assert load_tokenizer(out / "train") == load_tokenizer(out / "valid") == load_tokenizer(out)
    with pytest.raises(
        ShardError, match=r"out/index\.json does not exist: the shards are in .*out/train and /valid"
    ):
        ShardIndex.read(out)
    with pytest.raises(DataError, match=r"holds no tokenizer\.json\. Expected a folder of shards"):
        load_tokenizer(tmp_path)
    assert set(load_tokenizer(out / "train").words) == {"<unk>"} | {w for doc in train for w in doc}


def test_words_of_validation_alone_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"word{i} word{i}" for i in range(50)))
    out = prepare_text([str(tmp_path / "a.txt")], tmp_path / "out", split="line", valid_share=0.3)
    assert set(load_tokenizer(out).words) == {"<unk>", *(word for word, _ in all_words(out / "train"))}
    assert all_words(out / "valid") == [["<unk>", "<unk>"]] * ShardIndex.read(out / "valid").samples


def test_max_documents(corpus: str, tmp_path: Path) -> None:
    assert len(all_words(prepare_text([corpus], tmp_path / "out", max_documents=7))) == 7


def test_documents_without_a_word_are_left_out_and_zero_documents_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "___"}\n{"text": "a word"}\n')
    assert all_words(prepare_text([str(path)], tmp_path / "out")) == [["a", "word"]]
    path.write_text('{"text": "___"}\n')
    with pytest.raises(DataError, match=r"zero usable documents in .*a\.jsonl"):
        prepare_text(tmp_path.glob("a.*"), tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    for share in (0.0, 0.5):
        with pytest.raises(DataError, match=r"zero usable documents in .*empty"):
            prepare_text([str(tmp_path / "empty")], tmp_path / "none", valid_share=share)
    path.write_text('{"text": "alone"}\n')
    with pytest.raises(DataError, match="fell into the part"):
        prepare_text([str(path)], tmp_path / "none", valid_share=0.5)
    with pytest.raises(DataError, match="occurs 2 times or more"):
        prepare_text([str(path)], tmp_path / "none", min_count=2)
    assert not (tmp_path / "none").exists()


def test_numbers_of_numpy_are_settings_too(corpus: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.arange(90, dtype=np.uint8).reshape(3, 5, 6))
    number = np.int64(4)
    images = prepare_images(
        [str(tmp_path / "a.npz")], tmp_path / "images", bits=number, size=(number, number), max_images=number
    )
    assert load_tokenizer(images).shape == (4, 4)
    text = prepare_text(
        [corpus], tmp_path / "text", vocab_size=number, min_count=number, max_documents=number
    )
    assert load_tokenizer(text).vocab_size == 4


def test_the_report_names_what_was_left_out(
    corpus: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").touch()
    with open(corpus, "a") as f:
        f.write('{"text": "_"}\n{"text": ""}\n')
    prepare_text([str(tmp_path)], tmp_path / "out", workers=2)
    assert "left out: .json files (1), documents without a word (2)\n" in capfd.readouterr().err
    np.savez(tmp_path / "images.npz", images=np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    prepare_images([str(tmp_path / "*.*")], tmp_path / "images")
    assert "left out: .json files (1), .jsonl files (1)\n" in capfd.readouterr().err


def test_the_record_of_the_command_has_no_secret(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.txt").write_text("some words")
    with serving(tmp_path / "web") as server:
        address = f"{server.address.replace('//', '//me:SECRET@')}/a.txt?token=SECRET"
        assert main(["prepare", "text", address, "--out", str(tmp_path / "out")]) == 0
    record = (tmp_path / "out" / "command.json").read_text()
    assert "SECRET" not in record and f'"{server.address}/a.txt"' in record
    assert read_metadata(ShardIndex.read(tmp_path / "out"), 0)["source"] == "a.txt"


def test_shared_text(shared: Path, tmp_path: Path) -> None:
    text = shared / "text"
    out = prepare_text(
        [str(text / "wiki_valid.jsonl.xz"), str(text / "wikitext2_valid.tokens.xz")],
        tmp_path,
        valid_share=0.1,
    )
    train, valid = ShardIndex.read(out / "train"), ShardIndex.read(out / "valid")
    assert train.samples + valid.samples == 60 + 60  # articles of each
    # WikiText-2's published 217,646 tokens count an end of line for each of its 3,760 lines.
    assert train.tokens + valid.tokens > 213_886
    assert "wikitext2_valid.tokens.xz" in {read_metadata(train, i)["source"] for i in range(train.samples)}
