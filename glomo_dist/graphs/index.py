"""index.json of a graph store: what its graphs are of, which chunks hold them, and whether those are whole."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glomo_dist.graphs.mapped import map_safetensors
from glomo_dist.runtime import config, files, json_files
from glomo_dist.runtime.errors import ConfigError, DataError, describe
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.formats import check_format

FORMAT, VERSION = "glomo-graphs", 2
INDEX, SETTINGS = "index.json", "settings.json"
NO_IDENTITY = ("unknown_words", "predictor", "random_seed")  # fields of StoreMeta that follow from the others
PredictorKind = Literal["trained", "random"]
DIRECTIONS = ("forward", "backward")
EXPORT_AGAIN = "Delete the folder and run `glomo export` again."
EXPORT_ON = "run the same `glomo export` again, which keeps the chunks that are whole."


class GraphStoreError(DataError):
    """A graph store is missing, damaged, of another format version, or of other data than it is used with."""


@dataclass(frozen=True)
class StoreMeta:
    """What the graphs are of: recorded in the index and checked when the store is used.

    data: fingerprint of the task's data; model, tokenizer: of the predictor.
    max_units: per column of the task, the truncation applied to its inputs (None: none).
    unknown_words: share of the task's words that the predictor does not know, None for images.
    predictor: whether it was trained or has random parameters, then those of `random_seed`, else None.
    """

    task: str
    task_version: int
    data: str
    model: str
    tokenizer: str
    max_units: dict[str, int | None]
    unknown_words: float | None
    predictor: PredictorKind
    random_seed: int | None


@dataclass(frozen=True)
class ChunkEntry:
    """A file: the examples `first` .. `first` + `examples` - 1 of a split."""

    name: str
    first: int
    examples: int
    edges: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """A list of sequences, shared out among chunks in their order."""

    examples: int
    units: int
    edges: int
    chunks: tuple[ChunkEntry, ...]


@dataclass(frozen=True)
class StoreInfo(StoreMeta):
    """The content of index.json: what the graphs are of, and how they were made.

    layers, heads: of the predictor.  keep: at most so many edges per row (None: all).  code: version of the program.
    splits: split -> the fields of its `SplitEntry`.
    """

    format: str
    version: int
    layers: int
    heads: int
    keep: int | None
    code: str
    splits: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """What the names of jobs and their results know the store by: the same bytes by other code are the same."""
        others = {*NO_IDENTITY, "code"}
        return fingerprint({k: v for k, v in config.to_dict(self).items() if k not in others})

    @property
    def components(self) -> int:
        """Components of a mixed graph: every layer and head, and the products down the layers."""
        return (2 * self.layers - 1) * self.heads

    def component_names(self) -> list[str]:
        """Names in the order of `graph_mix(heads=K)`: G0.k, G1.k, P1.k, G2.k, P2.k … (P the product Λ)."""
        kinds = ["G0"] + [f"{kind}{layer}" for layer in range(1, self.layers) for kind in "GP"]
        return [f"{kind}.{head}" for kind in kinds for head in range(self.heads)]


def read_index(folder: Path) -> tuple[StoreInfo, dict[str, SplitEntry]]:
    """What index.json says, checked against the sizes of the chunks, and the entries of its splits.

    Raises GraphStoreError if the folder is not a whole store of this format version.
    """
    with files.reading(folder, GraphStoreError, "Allow it, or give another folder."):
        finished, begun = ((folder / name).is_file() for name in (INDEX, SETTINGS))
    if not finished:
        raise GraphStoreError(
            f"{folder}: no {INDEX}, so no finished graph store. "
            + (
                "The export was interrupted: run the same `glomo export` again, it continues."
                if begun
                else "Make one with `glomo export`, or check the path."
            )
        )
    where = str(folder / INDEX)
    try:
        content = json_files.read_json(where)
    except DataError as e:
        raise GraphStoreError(f"{e} If it is damaged, {EXPORT_ON}") from None
    values = check_format(
        content, FORMAT, VERSION, where, "the index of a graph store", error=GraphStoreError,
        instead="Give the output folder of `glomo export`.", again=EXPORT_AGAIN,
    )  # fmt: skip
    try:
        info = config.from_dict(StoreInfo, values, where)
        splits = {
            name: config.from_dict(SplitEntry, entry, f"{where}: splits.{name}")
            for name, entry in info.splits.items()
        }
    except ConfigError as e:
        raise GraphStoreError(f"{e} {EXPORT_AGAIN}") from None
    if min(info.layers, info.heads) < 1:
        raise GraphStoreError(
            f"{where}: {info.layers} layers and {info.heads} heads. The index is damaged. {EXPORT_AGAIN}"
        )
    if not 0 <= (info.unknown_words or 0) <= 1:  # nor is it NaN, which not even equals itself
        raise GraphStoreError(
            f"{where}: unknown_words is {info.unknown_words}, which is no share. The index is damaged. {EXPORT_AGAIN}"
        )
    for name, entry in splits.items():
        _check_chunks(folder, name, entry)
        _check_sizes(folder, entry, info.layers * info.heads, f"{where}: split {name!r}")
    _require_equal(folder, values)
    return info, splits


def read_settings(folder: Path) -> dict[str, Any]:
    """What the export began with."""
    try:
        settings = json_files.read_json(folder / SETTINGS)
    except DataError as e:
        raise GraphStoreError(f"{e} {EXPORT_AGAIN}") from None
    return settings if isinstance(settings, dict) else {}


def _require_equal(folder: Path, index: dict[str, Any]) -> None:
    """Raise GraphStoreError if the index is not of the settings that the export left beside it: its other fields are
    held to the chunks, but not even 2 layers of 4 heads differ from 4 layers of 2 heads there."""
    if not (folder / SETTINGS).is_file():
        return
    settings = read_settings(folder)
    for key, value in index.items():
        if settings.get(key, value) != value:
            raise GraphStoreError(
                f"{folder / INDEX}: {key} is {value!r}, but {settings[key]!r} in {SETTINGS}. One of them is "
                f"damaged. {EXPORT_AGAIN}"
            )


def _check_chunks(folder: Path, split: str, entry: SplitEntry) -> None:
    """Raise GraphStoreError unless the chunks are files of the folder, of their sizes, with all examples in order."""
    at = 0
    for chunk in entry.chunks:
        if chunk.first != at:
            break
        if Path(chunk.name).name != chunk.name:
            raise GraphStoreError(
                f"{folder / INDEX}: {chunk.name!r} is no name of a file in this folder. The index is damaged. "
                f"{EXPORT_AGAIN}"
            )
        check_chunk(folder / chunk.name, chunk.bytes, None)
        at += chunk.examples
    if at != entry.examples:
        raise GraphStoreError(
            f"{folder / INDEX}: the chunks of split {split!r} hold the examples up to {at} of {entry.examples}. "
            f"The index is damaged. {EXPORT_AGAIN}"
        )


def _check_sizes(folder: Path, entry: SplitEntry, components: int, where: str) -> None:
    """Raise GraphStoreError unless the arrays of the chunks are as long as the index says, by their headers alone."""
    rows = dict.fromkeys(DIRECTIONS, 0)
    for chunk in entry.chunks:
        path = folder / chunk.name
        try:
            with _reading(path):
                sizes = {name: len(array) for name, array in map_safetensors(path).items()}
            found = [sizes["units"], sum(sizes[f"{d}.columns"] for d in DIRECTIONS)]
            rows = {d: rows[d] + sizes[f"{d}.counts"] for d in DIRECTIONS}
        except (ValueError, KeyError, TypeError) as e:  # TypeError: a number has no length
            # What was written so has the right hash, and another export would keep it.
            remedy = EXPORT_AGAIN if _as_recorded(path, chunk.sha256) else f"The file is damaged: {EXPORT_ON}"
            raise GraphStoreError(f"{path}: no graphs can be read of it ({describe(e)}). {remedy}") from None
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


def _as_recorded(path: Path, sha256: str) -> bool:
    with contextlib.suppress(OSError):
        return files.sha256_file(path) == sha256
    return False


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    return files.reading(path, GraphStoreError, f"Allow it, or {EXPORT_ON}")


def check_chunk(path: Path, size: int, sha256: str | None) -> None:
    """Raise GraphStoreError unless the file is there, has `size` bytes and, if given, that SHA-256."""
    if not path.is_file():
        raise GraphStoreError(f"{path} is missing from the graph store: {EXPORT_ON}")
    if path.stat().st_size != size:
        raise GraphStoreError(
            f"{path}: {path.stat().st_size} bytes, the index says {size}. The file is damaged: {EXPORT_ON}"
        )
    with _reading(path):
        same = sha256 is None or files.sha256_file(path) == sha256
    if not same:
        raise GraphStoreError(
            f"{path}: its SHA-256 is not the recorded one. The file is damaged: {EXPORT_ON}"
        )
