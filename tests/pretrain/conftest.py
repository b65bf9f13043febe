from __future__ import annotations

from pathlib import Path

import pytest
from pretrain_samples import write_text

from glomo_dist.data import prepare_text


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "tiny.jsonl")


@pytest.fixture(scope="session")
def tiny_shards(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_text([str(tiny_text)], tmp_path_factory.mktemp("shards") / "all", vocab_size=50)


@pytest.fixture(scope="session")
def split_shards(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With parts train and valid."""
    out = tmp_path_factory.mktemp("shards") / "split"
    return prepare_text([str(tiny_text)], out, vocab_size=50, valid_share=0.3)
