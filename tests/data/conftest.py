"""Small shard folders, and where the shared data sets are."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from document_samples import TEXTS
from hypothesis import settings
from moto.server import ThreadedMotoServer
from shard_samples import MakeShards
from unbroken_samples import NAME, lines
from web_faults import Server, serving

from glomo_dist.data.shards.index import ShardIndex
from glomo_dist.data.shards.writing import ShardFolder
from glomo_dist.data.storage import patience, remote
from glomo_dist.data.tokenizers.text import WordTokenizer

# the same cases on every run: a test that fails now and then tells nobody why
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """make_shards(lengths, shard_bytes, name): an index over samples of these lengths; sample i is made of
    the ids (i, i + 1, ...) modulo the vocabulary of 1000 words."""

    def make(lengths: list[int], shard_bytes: int = 8192, name: str = "shards") -> ShardIndex:
        words = WordTokenizer(("<unk>", *(f"w{i}" for i in range(1, 1000))))
        writer = ShardFolder(tmp_path / name, words, shard_bytes)
        for i, n in enumerate(lengths):
            writer.add((np.arange(n) + i) % 1000, {"source": "made", "row": i})
        writer.close()
        return ShardIndex.read(tmp_path / name)

    return make


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """The path of TEXTS in a file."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with copies of public data sets: beside the checkout, or where GLOMO_TEST_DATA says."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("GLOMO_TEST_DATA", default))
    if not (folder / "text").is_dir():
        pytest.skip(f"no data sets at {folder} (set GLOMO_TEST_DATA to a folder with them)")
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An S3 server on the loopback, and a file system that talks to it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    names["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    # what another module has put there stays in this process otherwise
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", b"").close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
        filesystem.mkdir("corpus")
        yield filesystem
    server.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for a server, in modules that ask for it."""
    monkeypatch.setattr(remote, "STALL", 0.5)
    monkeypatch.setattr(patience, "WAITS", (0.01, 0.02, 0.03, 0.04, 0.05))
    monkeypatch.setattr(patience, "_reached", set())


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    """A server that has the corpus of unbroken_samples, in parts too."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / NAME).write_bytes(lines())
    with serving(folder) as server:
        server.parts = True
        yield server
