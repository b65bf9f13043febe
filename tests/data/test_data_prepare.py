"""From raw texts to shards."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from web_faults import serving, stall

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
from glomo_dist.data.parallel import ordered_map
from glomo_dist.data.prepare import BITS, MIN_COUNT, VOCAB_SIZE
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError, ShardError

TEXTS = [
    f"the {w} ran to the {w} {'again and again ' * i}." for i, w in enumerate(["cat", "dog", "fox"] * 40)
]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


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


def test_the_result_does_not_depend_on_place_or_processes(corpus: str, tmp_path: Path) -> None:
    one = ShardIndex.read(prepare_text([corpus], tmp_path / "one"))
    two = ShardIndex.read(prepare_text([str(tmp_path / "c*.jsonl")], tmp_path / "two", workers=2))
    assert one.fingerprint == two.fingerprint


def test_a_given_tokenizer_is_used_as_it_is(corpus: str, tmp_path: Path) -> None:
    first = prepare_text([corpus], tmp_path / "one", vocab_size=5)
    other = tmp_path / "other.txt"
    other.write_text("the whale ran")
    second = prepare_text([str(other)], tmp_path / "two", tokenizer=first / "tokenizer.json")
    assert load_tokenizer(second) == load_tokenizer(first)
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
    assert load_tokenizer(out / "train") == load_tokenizer(out / "valid") == load_tokenizer(out)
    with pytest.raises(
        ShardError, match=r"out/index\.json does not exist: the shards are in .*out/train and /valid"
    ):
        ShardIndex.read(out)
    with pytest.raises(DataError, match=r"holds no tokenizer\.json\. Expected a folder of shards"):
        load_tokenizer(tmp_path)
    assert set(load_tokenizer(out / "train").words) == {"<unk>"} | {w for doc in train for w in doc}


def test_max_documents(corpus: str, tmp_path: Path) -> None:
    assert len(all_words(prepare_text([corpus], tmp_path / "out", max_documents=7))) == 7


def test_failures_leave_nothing_behind(corpus: str, tmp_path: Path) -> None:
    with open(corpus, "a") as f:
        f.write('{"text": ')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 121: not valid JSON"):
        prepare_text([corpus], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_errors_in_another_process_arrive(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no text in it"):
        (tmp_path / "empty.txt").touch()
        prepare_text([corpus, str(tmp_path / "empty.txt")], tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


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


def test_documents_without_a_word_are_left_out_and_zero_documents_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "___"}\n{"text": "a word"}\n')
    assert all_words(prepare_text([str(path)], tmp_path / "out")) == [["a", "word"]]
    path.write_text('{"text": "___"}\n')
    with pytest.raises(DataError, match=r"zero usable documents in .*a\.jsonl"):
        prepare_text([str(path)], tmp_path / "none")
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
    assert "left out: 1 .json files, 2 documents without a word\n" in capfd.readouterr().err
    np.savez(tmp_path / "images.npz", images=np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    prepare_images([str(tmp_path / "*.*")], tmp_path / "images")
    assert "left out: 1 .json files, 1 .jsonl files\n" in capfd.readouterr().err


def _killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error() -> None:
    with pytest.raises(GlomoError, match=r"a worker process died .* fewer --workers"):
        list(ordered_map(_killed, range(20), 2))


MAPPER = """
import time
from glomo_dist.data.parallel import ordered_map
if __name__ == "__main__":
    for _ in ordered_map(time.sleep, [0.0] * 1000 + [3600.0], 2):
        print("x", flush=True)
"""


def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    (tmp_path / "mapper.py").write_text(MAPPER)
    command = [sys.executable, str(tmp_path / "mapper.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "x\n"
        children = psutil.Process(process.pid).children()
        process.kill()
    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=30)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_command_leaves_nothing_or_what_the_next_removes(
    number: signal.Signals, corpus: str, tmp_path: Path
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.txt").write_text("begun\n" * 500)
    with serving(tmp_path / "web") as server:
        server.always["a.txt"] = stall
        sources = [corpus, f"{server.address}/a.txt"]
        command = [sys.executable, "-m", "glomo_dist.cli", "prepare", "text", *sources, "--out"]
        with subprocess.Popen(
            [*command, str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number == signal.SIGHUP else None,
        ) as process:  # under nohup SIGHUP would be ignored
            while not server.asked["a.txt"]:
                time.sleep(0.05)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
    left = list(tmp_path.glob(".*"))
    if number == signal.SIGKILL:
        assert len(left) == 1
        prepare_text([corpus], tmp_path / "out")
    else:
        assert process.returncode == 130 and "glomo: stopped." in said and not left
    assert not list(tmp_path.glob(".*"))


def test_the_record_of_the_command_has_no_secret(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.txt").write_text("some words")
    with serving(tmp_path / "web") as server:
        address = f"{server.address.replace('//', '//me:SECRET@')}/a.txt?token=SECRET"
        assert main(["prepare", "text", address, "--out", str(tmp_path / "out")]) == 0
    record = (tmp_path / "out" / "command.json").read_text()
    assert "SECRET" not in record and f'"{server.address}/a.txt"' in record
    assert read_metadata(ShardIndex.read(tmp_path / "out"), 0)["source"] == "a.txt"


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


@pytest.mark.parametrize("name", ["spool.Spool.add", "shards.ShardFolder.add"])
def test_full_disk_in_the_middle(
    name: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(f"glomo_dist.data.{name}", full)
    with pytest.raises(GlomoError, match=r"cannot write .*out: No space left on device\. Free space"):
        prepare_text([corpus], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


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
    for setting in ({"bits": 2}, {"bits": BITS}, {"size": (2, 2)}, {"channels": 1}):
        with pytest.raises(ConfigError, match="are those of the tokenizer"):
            prepare_images([corpus], tmp_path / "out", tokenizer=tmp_path, **setting)


def test_tokenizers_of_the_wrong_kind(corpus: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    images = prepare_images([str(tmp_path / "images.npz")], tmp_path / "images")
    text = prepare_text([corpus], tmp_path / "text")
    with pytest.raises(DataError, match="tokenizer of pixels, text needs one of words"):
        prepare_text([corpus], tmp_path / "out", tokenizer=images)
    with pytest.raises(DataError, match="tokenizer of words, images need one of pixels"):
        prepare_images([str(tmp_path / "images.npz")], tmp_path / "out", tokenizer=text)


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
