"""SST-2 and IMDB as their authors publish them, a few rows of each, and where the whole sets are."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "sentiment"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")


def write_sst2(folder, train="sentence\tlabel\na smile on your face \t1\ncontains no wit \t0\n", test=None):
    folder.mkdir()
    (folder / "train.tsv").write_text(train, encoding="utf-8")
    (folder / "dev.tsv").write_text("sentence\tlabel\nit 's a charming journey . \t1\n", encoding="utf-8")
    (folder / "test.tsv").write_text(test or "sentence\tlabel\ntedious\t0\n", encoding="utf-8")
    return str(folder)


def write_imdb(folder, n=60):
    for split in ("train", "test"):
        for label, name in enumerate(("neg", "pos")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n // 2):
                text = f"{split} review {i} is {('dull', 'moving')[label]}.<br /><br />The end"
                (folder / split / name / f"{i}_{3 + 5 * label}.txt").write_text(text)
    return folder
