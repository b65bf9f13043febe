"""Writing shards: ordinary WebDataset tar files and the `index.json` that makes every sample reachable."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from glomo_dist.data.shards.index import INDEX_NAME, SHARDS_FORMAT, SHARDS_VERSION, shards_fingerprint
from glomo_dist.data.shards.tarsamples import id_dtype, sample_key
from glomo_dist.data.tokenizers.tokenizer import TOKENIZER, Tokenizer
from glomo_dist.runtime import packages
from glomo_dist.runtime.config import whole
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.files import sha256_file, write_bytes
from glomo_dist.runtime.json_files import write_json


def require_writer(shard_bytes: int) -> None:
    """Raises ConfigError for what `ShardFolder` would refuse: to be called before hours of reading."""
    packages.require("webdataset", "writing shards")
    whole("shard_bytes", shard_bytes, 1024, why=" (--shard-mib 1)")


class ShardFolder:
    """Writes samples into `folder`, shard after shard; `close` adds index and tokenizer.

    The bytes depend on the samples alone (fixed owner and time), so equal input gives an equal fingerprint.
    Not atomic by itself: use it inside `runtime.files.new_folder`.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_bytes: int) -> None:
        require_writer(shard_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        self.samples = 0
        self.tokens = 0
        self._folder, self._tokenizer, self._shard_bytes = folder, tokenizer, shard_bytes
        self._dtype = id_dtype(tokenizer.vocab_size)
        self._shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._tar: Any = None

    def add(self, ids: np.ndarray, metadata: dict[str, Any]) -> None:
        """One sample: integer ids [n], and JSON-able metadata."""
        if self._tar is None or self._tar.tarstream.offset >= self._shard_bytes:
            self._next_shard()
        shard = self._shards[-1]
        shard["offsets"].append(self._tar.tarstream.offset)
        shard["lengths"].append(len(ids))
        array = io.BytesIO()
        np.save(array, ids.astype(self._dtype), allow_pickle=False)
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
        key = sample_key(self.samples)
        self._tar.write({"__key__": key, "npy": array.getvalue(), "json": text.encode()})
        self.samples += 1
        self.tokens += len(ids)

    def _next_shard(self) -> None:
        from webdataset import TarWriter  # and with it torch: three seconds, which mistakes need not wait for

        self._finish_shard()
        name = f"shard-{len(self._shards):05d}.tar"
        self._shards.append({"name": name, "offsets": [], "lengths": []})
        self._file = open(self._folder / name, "wb")  # noqa: SIM115 - closed by _finish_shard
        self._tar = TarWriter(self._file, encoder=False, compress=False, mtime=0, user="glomo", group="glomo")

    def _finish_shard(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.close()
        self._tar = None
        shard = self._shards[-1]
        path = self._folder / shard["name"]
        shard["bytes"], shard["sha256"] = path.stat().st_size, sha256_file(path)
        shard["samples"], shard["tokens"] = len(shard["lengths"]), sum(shard["lengths"])

    def close(self) -> None:
        """Finish the last shard and write `tokenizer.json` and `index.json`."""
        self._finish_shard()
        if not self.samples:
            raise DataError("no sample to write: the inputs hold nothing usable.")
        write_json(self._folder / TOKENIZER, self._tokenizer.to_json())
        head = {
            "format": SHARDS_FORMAT,
            "version": SHARDS_VERSION,
            "kind": self._tokenizer.kind,
            "tokenizer": self._tokenizer.fingerprint,
            "vocab_size": self._tokenizer.vocab_size,
            "samples": self.samples,
            "tokens": self.tokens,
        }
        head["fingerprint"] = shards_fingerprint(head, self._shards)
        order = ("name", "bytes", "sha256", "samples", "tokens", "offsets", "lengths")
        # A line per shard: easy on the eye, and millions of offsets do not get a line each.
        lines = [json.dumps({key: shard[key] for key in order}) for shard in self._shards]
        text = json.dumps(head, indent=1)[:-2] + ',\n "shards": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
        write_bytes(self._folder / INDEX_NAME, text.encode())

    def abandon(self) -> None:
        """Close what is open after a failure; the folder is to be deleted. Nothing to do after `close`."""
        with contextlib.suppress(OSError):  # the disk may be full; what failed first is the error to show
            if self._tar is not None:
                self._tar.close()
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
