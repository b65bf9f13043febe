"""IMDB: its folders and JSON lines, wherever they lie, and what they may lack."""

import json

import fsspec
import pytest
from sentiment_samples import SHARED, shared, write_imdb

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.fingerprint import derive_seed, fingerprint
from glomo_dist.transfer.registry import get_task


def test_imdb_folder_and_jsonl_agree(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    data = get_task("imdb").load(str(folder), None)
    assert get_task("imdb").load(str(tmp_path), None).fingerprint == data.fingerprint  # its parent
    sizes = {name: len(split.labels) for name, split in data.splits.items()}
    assert sizes["test"] == 60
    assert sizes["train"] + sizes["dev"] == 60
    assert 1 <= sizes["dev"] <= 15
    words = data.splits["test"].columns["text"].values[0]
    assert "br" not in words
    assert words[-3:] == [".", "the", "end"]
    for split in ("train", "test"):
        rows = [
            {"id": str(p), "label": label, "text": p.read_text()}
            for label, name in enumerate(("neg", "pos"))
            for p in sorted((folder / split / name).iterdir())
        ]
        (tmp_path / f"imdb_{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "aclImdb").rename(tmp_path / "moved")
    again = get_task("imdb").load(str(tmp_path), None)
    assert again.fingerprint == data.fingerprint


def test_imdb_repeated_reviews_stay_together(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    before = get_task("imdb").load(str(folder), None).splits["dev"]
    for text in (folder / "train" / "pos").glob("*.txt"):
        text.with_name(f"9{text.name}").write_text(text.read_text())
    after = get_task("imdb").load(str(folder), None)
    train = {" ".join(words) for words in after.splits["train"].columns["text"].values}
    assert not train & {" ".join(words) for words in after.splits["dev"].columns["text"].values}
    assert len(after.splits["dev"].labels) > len(before.labels)


def test_imdb_without_one_class(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    (folder / "train" / "neg").rename(folder / "train" / "negative")
    with pytest.raises(DataError, match="train/neg does not exist"):
        get_task("imdb").load(str(folder), None)


def test_imdb_in_any_place_and_after_macos_and_windows(tmp_path):
    """What these leave: hidden files, and a mark of byte order before a text."""
    plain = get_task("imdb").load(str(write_imdb(tmp_path / "plain")), None)
    odd = write_imdb(tmp_path / "sets [v1] *?" / "aclImdb")
    (odd / "train" / "neg" / "._0_3.txt").write_bytes(b"\0\5\x16\7\0Mac OS X")
    review = odd / "train" / "neg" / "0_3.txt"
    review.write_bytes(b"\xef\xbb\xbf" + review.read_bytes())
    assert get_task("imdb").load(str(odd), None).fingerprint == plain.fingerprint
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "plain"), "/test_imdb", recursive=True)
    assert get_task("imdb").load("memory://test_imdb", None).fingerprint == plain.fingerprint
    memory.rm("/test_imdb", recursive=True)


def test_imdb_empty_class_and_unreadable_text(tmp_path):
    folder = write_imdb(tmp_path / "aclImdb")
    (folder / "test" / "neg" / "5.txt").mkdir()
    with pytest.raises(DataError, match=r"test/neg/5\.txt cannot be read: Is a directory"):
        get_task("imdb").load(str(folder), None)
    for text in (folder / "train" / "neg").iterdir():
        text.rename(text.with_suffix(".html"))
    with pytest.raises(DataError, match=r"train/neg has no \.txt file; unpack the set again"):
        get_task("imdb").load(str(folder), None)


def test_half_a_surrogate_pair_is_hashed_and_all_else_as_before(tmp_path):
    for split in ("train", "test"):
        rows = [json.dumps({"text": f"film {i} \ud83d", "label": i % 2}) for i in range(30)]
        (tmp_path / f"imdb_{split}.jsonl").write_text("\n".join(rows))
    assert len(get_task("imdb").load(str(tmp_path), None).splits["test"].labels) == 30
    assert fingerprint("\ud83d") != fingerprint("\ud83e")
    assert fingerprint({"a": ["é", 1.5]}) == "ad0ce1acf2241111"
    assert derive_seed("x", 3, "日本") == 3415145779795070159


def test_max_examples_is_a_stable_draw(tmp_path):
    folder = str(write_imdb(tmp_path / "aclImdb"))
    one, other = (get_task("imdb").load(folder, 10) for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert len(one.splits["test"].labels) == 10
    assert 0 < one.splits["test"].labels.sum() < 10  # drawn from all of the file, not its beginning


@shared
def test_shared_imdb():
    data = get_task("imdb").load(str(SHARED), 500)
    assert {name: len(split.labels) for name, split in data.splits.items()} == {
        "train": 500,
        "dev": 500,
        "test": 500,
    }
    assert 180 < data.splits["test"].labels.sum() < 320


def test_a_dev_split_that_train_is_too_small_for_says_how_it_is_drawn(tmp_path):
    drawn = "the dev split has no example. It is one review in 10 of train, chosen by its hash"
    kept = [text for text in ("fine", "dull", "good", "bad") if derive_seed("imdb dev", text) % 10]
    for split in ("train", "test"):
        lines = (json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(kept))
        (tmp_path / f"imdb_{split}.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match=drawn):
        get_task("imdb").load(str(tmp_path), None)
