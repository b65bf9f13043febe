"""A contextual encoder's states as features: one vector per word, computed once per text and kept on disk.

    glomo/states in the user's cache folder, or the folder that is given
        <encoder>/<texts>.safetensors     states float16 [words of consecutive texts, width], and in the metadata the
                                          SHA-256 of both names and their bytes

Both names are fingerprints, of the encoder's files, layer and pooling and of the texts, so a file is never stale and
may be deleted at any time. A file appears when it is whole: what an interrupted run has finished, the next one finds.
One that is not what was written under its name is made again. Processes that need the same file wait for the first.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from glomo_dist.graphs.chunks import chunk_ranges
from glomo_dist.graphs.mapped import map_with_metadata
from glomo_dist.runtime import files
from glomo_dist.runtime.devices import Device
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.locks import Lock, take, unguarded
from glomo_dist.runtime.paths import user_cache
from glomo_dist.runtime.progress import bar
from glomo_dist.transfer.features.encoder import Encoder
from glomo_dist.transfer.features.encoder_files import locate
from glomo_dist.transfer.features.spec import FeatureSpec

CHUNK_WORDS = 1 << 15


@dataclass(frozen=True)
class StateColumn:
    """The states of the values of one column, mapped from disk. first: of each chunk, its first value."""

    chunks: list[np.ndarray[Any, Any]]
    first: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]  # of each value in its chunk

    @property
    def width(self) -> int:
        return int(self.chunks[0].shape[1])

    def batch(self, numbers: np.ndarray[Any, Any], lengths: Tensor, T: int) -> Tensor:
        """States of the values `numbers` as float32 [N, T, width], zero at padding."""
        found = np.zeros((len(numbers), T, self.width), np.float32)
        chunks = np.searchsorted(self.first, numbers, "right") - 1
        for row, (number, chunk, n) in enumerate(zip(numbers, chunks, lengths.tolist(), strict=True)):
            at = int(self.starts[number])
            found[row, :n] = self.chunks[chunk][at : at + n]
        return torch.from_numpy(found)


def column_states(
    spec: FeatureSpec,
    content: str,
    columns: dict[str, list[list[str]]],
    cache: str | Path | None,
    device: Device = "cpu",
) -> dict[str, StateColumn]:
    """The states of every text of every column, computed where they are not in the cache.

    content: the encoder's fingerprint.  columns: by name, the words of each text.
    cache: None for glomo/states in the user's cache folder.  device: where the encoder computes.
    """
    folder = (Path(cache) if cache is not None else user_cache("states")) / content

    @functools.cache
    def encoder() -> Encoder:
        """Loaded when the first text needs it."""
        loaded = Encoder(locate(spec.source), spec.layer, spec.pool, device)
        loaded.require_known(word for texts in columns.values() for text in texts for word in text)
        return loaded

    found = {}
    total = sum(len(text) for texts in columns.values() for text in texts)
    with bar(total=total, desc=f"states of {Path(spec.source).name}", unit="word", leave=False) as progress:
        for name, texts in columns.items():
            lengths = np.array([len(text) for text in texts], np.int64)
            chunks = chunk_ranges(lengths, CHUNK_WORDS)
            arrays, starts = [], np.zeros(len(texts), np.int64)
            for first, last in chunks:
                arrays.append(_chunk(folder, texts[first:last], encoder))
                starts[first:last] = np.cumsum(lengths[first:last]) - lengths[first:last]
                progress.update(int(lengths[first:last].sum()))
            found[name] = StateColumn(arrays, np.array([first for first, _ in chunks], np.int64), starts)
    widths = {states.shape[1] for column in found.values() for states in column.chunks}
    if len(widths) > 1:
        raise GlomoError(
            f"{folder}: states of different widths, {sorted(widths)}, of one encoder. Delete the folder."
        )
    return found


def _chunk(folder: Path, texts: Sequence[list[str]], encoder: Callable[[], Encoder]) -> np.ndarray[Any, Any]:
    """The states of consecutive texts, from their file, which is made if it is not there."""
    digest = hashlib.sha256("\1".join("\0".join(text) for text in texts).encode(errors="surrogatepass"))
    path = folder / f"{digest.hexdigest()[:24]}.safetensors"
    words = sum(map(len, texts))
    if (found := _mapped(path, words)) is not None:
        return found
    with files.writing(path, "Choose another state_cache."):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    with lock:
        with files.writing(path, "Choose another state_cache."):
            if take(lock, wait=True) is Lock.UNSUPPORTED:
                unguarded(folder, "processes that need the same states may each compute them.")
        if (found := _mapped(path, words)) is None:  # nobody has made it meanwhile
            states = encoder().states(texts)
            files.write_bytes(path, save({"states": states}, {"sha256": _digest(path, states)}))
            found = _mapped(path, words)
    path.with_suffix(".lock").unlink(missing_ok=True)
    if found is None:
        raise GlomoError(f"{path} is not what was just written there. Is the disk sound?")
    return found


def _mapped(path: Path, words: int) -> np.ndarray[Any, Any] | None:
    """The states in a file, or None if it is not there, damaged, of another size or name, or without a digest."""
    try:
        arrays, metadata = map_with_metadata(path)
        states = arrays["states"]
    except (OSError, ValueError, KeyError):
        return None
    if states.dtype != np.float16 or states.ndim != 2 or len(states) != words:
        return None
    return states if metadata.get("sha256") == _digest(path, states) else None


def _digest(path: Path, states: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256(f"{path.parent.name}/{path.stem}".encode())
    digest.update(np.ascontiguousarray(states).reshape(-1).data)
    return digest.hexdigest()
