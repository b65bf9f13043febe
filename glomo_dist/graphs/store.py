"""The graph store: sparse graphs of a task's inputs on disk, assembled into batches from a memory map.

    index.json               what the graphs are of, and where: {format: "glomo-graphs", version: 2, …}
    chunk-<split>-00000.safetensors
                             consecutive sequences of one split, which here is a list of sequences: of a task
                             the distinct texts (or the images) of one column of one split, "train.premise":
        units      int64 [n]            units of each sequence (after truncation to `max_units`)
        <direction>.counts  uint8 | int32 [Σ C·units]   live edges of each row: (example, component, unit)
        <direction>.columns int16 | int32 [E]           the j of each edge, rows in the order of `counts`
        <direction>.weights float16 [E]                 its weight; rows sum to 1 up to float16 rounding, or less
        <direction>.edges   int64 [n+1]                 where the edges of each example begin

`direction` is "forward" (edges j < i) or "backward" (j > i). Row counts are stored rather than row offsets:
the same information in an eighth of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glomo_kernels import SparseGraph

from glomo_dist.graphs.checks import require_graphs
from glomo_dist.graphs.chunks import Arrays
from glomo_dist.graphs.index import (
    EXPORT_AGAIN,
    ChunkEntry,
    GraphStoreError,
    SplitEntry,
    StoreInfo,
    check_chunk,
    read_index,
)
from glomo_dist.graphs.mapped import map_safetensors
from glomo_dist.runtime.words import counted


class GraphStore:
    """Graphs of all examples of a task, by split and index. Open one with `GraphStore.open`."""

    def __init__(self, folder: Path, info: StoreInfo, splits: dict[str, SplitEntry]) -> None:
        self.folder = folder
        self.info = info
        self.splits = splits
        self._starts = {s: np.array([c.first for c in e.chunks], np.int64) for s, e in splits.items()}
        self._chunks: dict[str, Arrays] = {}

    @classmethod
    def open(cls, folder: str | Path) -> GraphStore:
        """Read and check the index, also against the chunks' sizes; a chunk is compared with its SHA-256, mapped and
        looked through for what is no graph when it is first used.

        Raises GraphStoreError if the folder is not a whole store of this format version.
        """
        folder = Path(folder)
        return cls(folder, *read_index(folder))

    def check(self, task: str, task_version: int, data: str, max_units: dict[str, int | None]) -> None:
        """Refuse graphs of another task, version, data or truncation than the caller works with."""
        info = self.info
        for name, ours, theirs in (
            ("task", info.task, task),
            ("task version", info.task_version, task_version),
            ("task data fingerprint", info.data, data),
            ("max_units", info.max_units, max_units),
        ):
            if ours != theirs:
                raise GraphStoreError(
                    f"graph store {self.folder} does not fit the job: its {name} is {ours!r}, the job's is "
                    f"{theirs!r}. Export the graphs for this job (same task, source, max_examples and "
                    f"max_units), or point the job at the right store."
                )

    def check_split(self, split: str, examples: int) -> None:
        """Refuse a store that has no graphs, or those of another number of examples, for a split of the caller's."""
        ours = self.splits[split].examples if split in self.splits else 0
        if ours != examples:
            raise GraphStoreError(
                f"graph store {self.folder} has graphs of {counted(ours, 'example')} of {split!r}, the job's data "
                f"have {examples}. The index is damaged. {EXPORT_AGAIN}"
            )

    def batch(
        self, split: str, indices: Sequence[int] | np.ndarray[Any, Any], T: int | None = None
    ) -> tuple[SparseGraph, SparseGraph]:
        """Graphs (forward, backward) of the examples `indices` of `split`, shape (B, layers·heads, T).

        T: padded length, default the longest example of the batch; rows of padding units are empty.
        Raises GraphStoreError for an unknown split or index and for a damaged chunk, ValueError for indices that are
        no list of whole numbers and if T is too small.
        """
        entry, indices = self._split(split), _whole_numbers(indices)
        if indices.size and (indices.min() < 0 or indices.max() >= entry.examples):
            raise GraphStoreError(
                f"{self.folder}: split {split!r} has examples 0..{entry.examples - 1}, asked for "
                f"{indices.min()}..{indices.max()}. Export the whole task again."
            )
        located = []
        for number, index in zip(
            (np.searchsorted(self._starts[split], indices, "right") - 1).tolist(),
            indices.tolist(),
            strict=True,
        ):
            chunk = entry.chunks[number]
            located.append((self._chunk(chunk), index - chunk.first))
        units = [int(chunk["units"][at]) for chunk, at in located]
        longest = max(units, default=0)
        if T is None:
            T = longest
        elif longest > T:
            raise ValueError(f"GraphStore.batch: T = {T}, but an example has {longest} units.")
        return self._assemble(located, units, T, "forward"), self._assemble(located, units, T, "backward")

    def units(self, split: str) -> np.ndarray[Any, Any]:
        """Units of every example of `split`, int64 [examples]. Raises GraphStoreError as `batch` does."""
        chunks = self._split(split).chunks
        return np.concatenate([np.zeros(0, np.int64)] + [self._chunk(c)["units"] for c in chunks])

    def _split(self, name: str) -> SplitEntry:
        if name not in self.splits:
            raise GraphStoreError(f"{self.folder}: no split {name!r}; it has {', '.join(self.splits)}.")
        return self.splits[name]

    def _assemble(
        self, located: list[tuple[Arrays, int]], units: list[int], T: int, direction: str
    ) -> SparseGraph:
        """located: of each example its chunk and its place there."""
        B, C = len(located), self.info.layers * self.info.heads
        counts = np.zeros((B, C, T), np.int32)
        columns, weights = [np.zeros(0, np.int16)], [np.zeros(0, np.float16)]
        for b, ((chunk, at), n) in enumerate(zip(located, units, strict=True)):
            row = int(chunk["rows"][at])
            counts[b, :, :n] = chunk[f"{direction}.counts"][C * row : C * (row + n)].reshape(C, n)
            edges = chunk[f"{direction}.edges"]
            begin, end = int(edges[at]), int(edges[at + 1])
            columns.append(chunk[f"{direction}.columns"][begin:end])
            weights.append(chunk[f"{direction}.weights"][begin:end])
        # Padding rows are empty, so the edges of the batch are those of its examples one after the other.
        offsets = np.zeros(B * C * T + 1, np.int64)
        np.cumsum(counts.reshape(-1), out=offsets[1:])
        return SparseGraph(
            torch.from_numpy(offsets),
            torch.from_numpy(np.concatenate(columns, dtype=np.int32)),
            torch.from_numpy(np.concatenate(weights, dtype=np.float32)),
            (B, C, T),
        )

    def _chunk(self, entry: ChunkEntry) -> Arrays:
        if entry.name not in self._chunks:
            arrays = self._load(entry)
            arrays["rows"] = np.concatenate([[0], np.cumsum(arrays["units"])])
            self._chunks[entry.name] = arrays
        return self._chunks[entry.name]

    def _load(self, entry: ChunkEntry) -> Arrays:
        path = self.folder / entry.name
        check_chunk(path, entry.bytes, entry.sha256)
        arrays = map_safetensors(path)
        require_graphs(path, arrays, entry.examples, self.info.layers * self.info.heads)
        return arrays


def _whole_numbers(indices: Sequence[int] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As int64 [n]. A cast alone would take a mask for the examples 0 and 1, and cut fractions off."""
    given = np.asarray(indices)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(
            "GraphStore.batch: indices must be a list of whole numbers, the numbers of the examples, got "
            f"{given.dtype} {list(given.shape)}. Of a mask, numpy.flatnonzero gives them."
        )
    return given.astype(np.int64)
