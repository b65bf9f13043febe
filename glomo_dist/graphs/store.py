"""The graph store: sparse graphs of a task's inputs on disk, assembled into batches from a memory map.

    index.json               what the graphs are of, and where: {format: "glomo-graphs", version: 2, …}
    chunk-<split>-00000.safetensors
                             consecutive sequences of one split, which here is a list of sequences: of a task
                             the distinct texts (or the images) of one column of one split, "train.premise":
        units      int64 [n]            units of each sequence (after truncation to `max_units`)
        <direction>.counts  uint8 | int32 [Σ C·units]   live edges of each row: (example, component, unit)
        <direction>.columns int16 | int32 [E]           the j of each edge, rows in the order of `counts`
        <direction>.weights float16 [E]                 its weight; rows sum to 1 up to float16 rounding
        <direction>.edges   int64 [n+1]                 where the edges of each example begin

`direction` is "forward" (edges j < i) or "backward" (j > i). Row counts are stored rather than row offsets:
the same information in an eighth of the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from glomo_kernels import SparseGraph

from glomo_dist.graphs.mapped import map_safetensors
from glomo_dist.runtime import config, files
from glomo_dist.runtime.errors import DataError, describe
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.formats import check_format

FORMAT, VERSION = "glomo-graphs", 2
INDEX, SETTINGS = "index.json", "settings.json"
RECORDED_LATER = ("unknown_words", "predictor", "random_seed")  # fields of StoreMeta and StoreInfo
PredictorKind = Literal["trained", "random"]
DIRECTIONS = ("forward", "backward")
EXPORT_AGAIN = "Delete the folder and run `glomo export` again."


class GraphStoreError(DataError):
    """A graph store is missing, damaged, of another format version, or of other data than it is used with."""


@dataclass(frozen=True)
class ChunkEntry:
    name: str
    first: int
    examples: int
    edges: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitEntry:
    examples: int
    units: int
    edges: int
    chunks: tuple[ChunkEntry, ...]


@dataclass(frozen=True)
class StoreInfo:
    """The content of index.json. `data` is the fingerprint of the task data, `model` of the predictor.

    The fields with defaults are None in stores of before they were recorded. unknown_words: share of the task's words
    that the predictor does not know, None for images too. predictor: whether it was trained or has random parameters,
    then those of `random_seed`.
    """

    format: str
    version: int
    task: str
    task_version: int
    data: str
    model: str
    tokenizer: str
    layers: int
    heads: int
    keep: int | None
    max_units: dict[str, int | None]
    code: str
    splits: dict[str, Any]
    unknown_words: float | None = None
    predictor: PredictorKind | None = None
    random_seed: int | None = None

    @property
    def fingerprint(self) -> str:
        """What the names of jobs and their results know the store by. Without what was recorded later and follows
        from the rest: an older store keeps its jobs when that is added to its index."""
        return fingerprint({k: v for k, v in config.to_dict(self).items() if k not in RECORDED_LATER})

    @property
    def components(self) -> int:
        """Components of a mixed graph: every layer and head, and the products down the layers."""
        return (2 * self.layers - 1) * self.heads

    def component_names(self) -> list[str]:
        """Names in the order of `graph_mix(heads=K)`: G0.k, G1.k, P1.k, G2.k, P2.k … (P the product Λ)."""
        kinds = ["G0"] + [f"{kind}{layer}" for layer in range(1, self.layers) for kind in "GP"]
        return [f"{kind}.{head}" for kind in kinds for head in range(self.heads)]


class GraphStore:
    """Graphs of all examples of a task, by split and index. Open one with `GraphStore.open`."""

    def __init__(self, folder: Path, info: StoreInfo, splits: dict[str, SplitEntry]) -> None:
        self.folder = folder
        self.info = info
        self.splits = splits
        self._starts = {s: np.array([c.first for c in e.chunks], np.int64) for s, e in splits.items()}
        self._chunks: dict[str, dict[str, np.ndarray[Any, Any]]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> GraphStore:
        """Read and check the index, also against the chunks' sizes; a chunk is compared with its SHA-256 and mapped
        when it is first used.

        Raises GraphStoreError if the folder is not a whole store of this format version.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            unfinished = (folder / SETTINGS).is_file()
            raise GraphStoreError(
                f"{folder}: no {INDEX}, so no finished graph store. "
                + (
                    "The export was interrupted: run the same `glomo export` again, it continues."
                    if unfinished
                    else "Make one with `glomo export`, or check the path."
                )
            )
        where = str(folder / INDEX)
        values = check_format(
            files.read_json(where), FORMAT, VERSION, where, "the index of a graph store", error=GraphStoreError,
            instead="Give the output folder of `glomo export`.", again=EXPORT_AGAIN,
        )  # fmt: skip
        info = config.from_dict(StoreInfo, values, where)
        splits = {
            name: config.from_dict(SplitEntry, entry, f"{where}: splits.{name}")
            for name, entry in info.splits.items()
        }
        if min(info.layers, info.heads) < 1:
            raise GraphStoreError(
                f"{where}: {info.layers} layers and {info.heads} heads. The index is damaged. {EXPORT_AGAIN}"
            )
        for name, entry in splits.items():
            at = 0
            for chunk in entry.chunks:
                if chunk.first != at:
                    break
                check_chunk(folder / chunk.name, chunk.bytes, None)
                at += chunk.examples
            if at != entry.examples:
                raise GraphStoreError(
                    f"{where}: the chunks of split {name!r} hold the examples up to {at} of {entry.examples}. "
                    f"The index is damaged. {EXPORT_AGAIN}"
                )
            _check_sizes(folder, entry, info.layers * info.heads, f"{where}: split {name!r}")
        return cls(folder, info, splits)

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
                f"graph store {self.folder} has graphs of {ours} examples of {split!r}, the job's data have "
                f"{examples}. The index is damaged. {EXPORT_AGAIN}"
            )

    def batch(
        self, split: str, indices: Sequence[int] | np.ndarray[Any, Any], T: int | None = None
    ) -> tuple[SparseGraph, SparseGraph]:
        """Graphs (forward, backward) of the examples `indices` of `split`, shape (B, layers·heads, T).

        T: padded length, default the longest example of the batch; rows of padding units are empty.
        Raises GraphStoreError for an unknown split or index and for a damaged chunk, ValueError if T is too
        small.
        """
        if split not in self.splits:
            raise GraphStoreError(f"{self.folder}: no split {split!r}; it has {', '.join(self.splits)}.")
        indices = np.asarray(indices, np.int64)
        entry = self.splits[split]
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
        """Units of every example of `split`, int64 [examples]."""
        return np.concatenate(
            [np.zeros(0, np.int64)] + [self._chunk(c)["units"] for c in self.splits[split].chunks]
        )

    def _assemble(
        self,
        located: list[tuple[dict[str, np.ndarray[Any, Any]], int]],
        units: list[int],
        T: int,
        direction: str,
    ) -> SparseGraph:
        B, C = len(located), self.info.layers * self.info.heads
        counts = np.zeros((B, C, T), np.int32)
        columns, weights = [], []
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
        empty = not columns
        return SparseGraph(
            torch.from_numpy(offsets),
            torch.from_numpy(np.zeros(0, np.int32) if empty else np.concatenate(columns, dtype=np.int32)),
            torch.from_numpy(np.zeros(0, np.float32) if empty else np.concatenate(weights, dtype=np.float32)),
            (B, C, T),
        )

    def _chunk(self, entry: ChunkEntry) -> dict[str, np.ndarray[Any, Any]]:
        if entry.name not in self._chunks:
            arrays = self._load(entry)
            arrays["rows"] = np.concatenate([[0], np.cumsum(arrays["units"])])
            self._chunks[entry.name] = arrays
        return self._chunks[entry.name]

    def _load(self, entry: ChunkEntry) -> dict[str, np.ndarray[Any, Any]]:
        path = self.folder / entry.name
        check_chunk(path, entry.bytes, entry.sha256)
        return map_safetensors(path)


def _check_sizes(folder: Path, entry: SplitEntry, components: int, where: str) -> None:
    """Raise GraphStoreError unless the arrays of the chunks are as long as the index says, by their headers alone."""
    rows = dict.fromkeys(DIRECTIONS, 0)
    for chunk in entry.chunks:
        try:
            sizes = {name: len(array) for name, array in map_safetensors(folder / chunk.name).items()}
            found = [sizes["units"], sum(sizes[f"{d}.columns"] for d in DIRECTIONS)]
            rows = {d: rows[d] + sizes[f"{d}.counts"] for d in DIRECTIONS}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise GraphStoreError(
                f"{folder / chunk.name}: no graphs can be read of it ({describe(e)}). {EXPORT_AGAIN}"
            ) from None
        if found != [chunk.examples, chunk.edges]:
            raise GraphStoreError(
                f"{where}: {chunk.name} is said to have {chunk.examples} examples and {chunk.edges} edges, but has "
                f"{found[0]} and {found[1]}. The index is damaged. {EXPORT_AGAIN}"
            )
    said = components * entry.units
    if set(rows.values()) != {said} or sum(chunk.edges for chunk in entry.chunks) != entry.edges:
        raise GraphStoreError(
            f"{where}: its chunks do not have the {entry.units} units in {components} graphs (layers x heads) and "
            f"{entry.edges} edges that are said. The index is damaged. {EXPORT_AGAIN}"
        )


def check_chunk(path: Path, size: int, sha256: str | None) -> None:
    """Raise GraphStoreError unless the file is there, has `size` bytes and, if given, that SHA-256."""
    if not path.is_file():
        raise GraphStoreError(f"{path} is missing from the graph store. {EXPORT_AGAIN}")
    if path.stat().st_size != size:
        raise GraphStoreError(
            f"{path}: {path.stat().st_size} bytes, the index says {size}. The file is damaged. {EXPORT_AGAIN}"
        )
    if sha256 is not None and files.sha256_file(path) != sha256:
        raise GraphStoreError(
            f"{path}: its SHA-256 is not the recorded one. The file is damaged. {EXPORT_AGAIN}"
        )
