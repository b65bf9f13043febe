"""From a frozen predictor and encoded examples to a graph store, in restartable chunks.

Every chunk is written whole, then its sidecar `.json` with the SHA-256, and index.json when all chunks are
there. Run again with the same settings, the export keeps the chunks that still match their hash and makes
the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from glomo_dist.graphs.chunks import CHUNK_UNITS, Arrays, chunk_ranges
from glomo_dist.graphs.index import (
    DIRECTIONS,
    FORMAT,
    INDEX,
    NO_IDENTITY,
    SETTINGS,
    VERSION,
    ChunkEntry,
    GraphStoreError,
    StoreMeta,
    check_chunk,
    read_settings,
)
from glomo_dist.graphs.predict import BATCH_UNITS, check_ids, device_of, predict_chunk
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.glomo import Glomo
from glomo_dist.model.graph_predictor import affinity_kind
from glomo_dist.runtime import config, files, json_files, kernels
from glomo_dist.runtime.devices import Device, in_float32
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.fingerprint import code_version, fingerprint
from glomo_dist.runtime.paths import output
from glomo_dist.runtime.progress import bar

_SETTINGS_ONLY = ("chunk_units", "batch_units", "device", "examples")  # what the index does not repeat
# Settings that are fingerprints, for messages.
_OF = {
    "data": "the task data",
    "examples": "the examples",
    "model": "the predictor",
    "tokenizer": "the tokenizer",
}


@dataclass(frozen=True)
class ExportNumbers:
    """`keep` and `batch_units` of `export_graphs`: of the types and in the ranges that a store can be read with.

    Made before anything is read, they are refused then.
    """

    keep: int | None
    batch_units: int

    def __post_init__(self) -> None:
        config.check_fields(self, "export: ")
        config.check_least(self, "export: ", 1, "keep", "batch_units")


def require_graph_kernels(model: GlomoConfig, device: Device = "cpu") -> None:
    """ConfigError where GLOMO_KERNELS names a backend that cannot compute the graphs of such a model there."""
    x, kind = torch.empty(1, 1, 1, 1, device=device), affinity_kind(model)
    kernels.require("affinity_graph", x, x, None, None, None, kind)
    if model.coupled and model.layers > 1:  # the features of the layers below
        kernels.require("affinity_mix", x, x, x, None, None, None, kind)


def export_graphs(
    model: Glomo,
    splits: dict[str, list[np.ndarray[Any, Any]]],
    out: str | Path,
    *,
    meta: StoreMeta,
    keep: int | None = 8,
    batch_units: int = BATCH_UNITS,
    chunk_units: int = CHUNK_UNITS,
) -> Path:
    """Write the graphs of every example of every split to the store `out`, computed where `model` is; returns `out`.

    splits: per split the predictor's unit ids of each example, integer [n] with n ≥ 0, already truncated.
    keep: at most so many largest edges per row, renormalised (None: all).
    batch_units: padded units per forward pass.  chunk_units: units per file, the unit of restarting.
    Raises GraphStoreError if `out` was begun with other settings, GlomoError if it holds something else or another
    process is exporting into it.
    """
    out = output(out)
    numbers = ExportNumbers(keep, batch_units)
    keep, batch_units = numbers.keep, numbers.batch_units
    check_ids(model, splits, "export")
    lengths = {name: np.array([len(e) for e in examples], np.int64) for name, examples in splits.items()}
    facts = config.to_dict(meta)
    settings = {
        **{name: value for name, value in facts.items() if name not in NO_IDENTITY},
        "format": FORMAT,
        "version": VERSION,
        "layers": model.config.layers,
        "heads": model.config.heads,
        "keep": keep,
        "chunk_units": chunk_units,
        "batch_units": batch_units,  # rounds weights otherwise, and so does another device
        "device": device_of(model).type,
        "examples": {name: fingerprint([e.tolist() for e in examples]) for name, examples in splits.items()},
    }
    _make(out)
    with files.only_one(out, "exporting"):
        _begin(out, settings)
        with files.writing(out):
            for name in (SETTINGS, INDEX, "chunk-*"):  # what a killed export left
                files.remove_leftovers(out, f"{name}.*")
        entries = _chunks(model, splits, lengths, out, keep, batch_units, chunk_units)
        index = {k: v for k, v in settings.items() if k not in _SETTINGS_ONLY}
        index |= {name: facts[name] for name in NO_IDENTITY}
        index["code"] = code_version()
        index["splits"] = {
            name: {
                "examples": len(splits[name]),
                "units": int(lengths[name].sum()),
                "edges": sum(c.edges for c in written),
                "chunks": [config.to_dict(c) for c in written],
            }
            for name, written in entries.items()
        }
        if not _is_of(out / INDEX, index):
            json_files.write_json(out / INDEX, index)
    return out


def _chunks(
    model: Glomo, splits: dict[str, list[np.ndarray[Any, Any]]], lengths: dict[str, np.ndarray[Any, Any]], out: Path,
    keep: int | None, batch_units: int, chunk_units: int,
) -> dict[str, list[ChunkEntry]]:  # fmt: skip
    """Of every split the chunks, those of an earlier run or written now."""
    was_training = model.training
    model.eval()
    entries: dict[str, list[ChunkEntry]] = {name: [] for name in splits}
    units = int(sum(n.sum() for n in lengths.values()))
    try:
        with in_float32(device_of(model).type), bar(total=units, desc="export", unit="unit") as progress:
            for name, examples in splits.items():
                for number, (first, last) in enumerate(chunk_ranges(lengths[name], chunk_units)):
                    path = out / f"chunk-{name}-{number:05d}.safetensors"
                    entry = _finished(path, first, last - first)
                    if entry is None:
                        arrays = predict_chunk(
                            model, examples[first:last], keep, batch_units, progress.update
                        )
                        entry = _write(path, arrays, first, last - first)
                    else:
                        progress.update(int(lengths[name][first:last].sum()))
                    entries[name].append(entry)
    finally:
        model.train(was_training)
    return entries


def _is_of(path: Path, index: dict[str, Any]) -> bool:
    """Whether the index that is there is of these very chunks: then it names the code that made them."""
    if not path.is_file():
        return False
    try:
        before = json_files.read_json(path)
    except DataError:
        return False
    return isinstance(before, dict) and {**before, "code": None} == {**index, "code": None}


def _make(out: Path) -> None:
    """The folder, unless it is there with a store or empty; GlomoError if it holds something else."""
    with files.writing(out):  # even looking may be forbidden
        if not (out / SETTINGS).is_file():
            files.require_absent_or_empty(out, first=SETTINGS)
        out.mkdir(parents=True, exist_ok=True)


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or make sure it was begun with the same ones."""
    if not (out / SETTINGS).is_file():
        json_files.write_json(out / SETTINGS, settings)
        return
    before = read_settings(out)
    before.setdefault("device", "cpu")  # which it was where no other could be asked for
    different = [k for k in settings if before.get(k) != settings[k]]
    if different:
        key, was = different[0], before.get(different[0])
        what = f"the fingerprint of {_OF[key]}" if key in _OF else key
        raise GraphStoreError(
            f"{out} was begun with other settings: {what} is {was!r} there and {settings[key]!r} now. "
            "Choose another folder, or delete this one."
        )


def _finished(path: Path, first: int, examples: int) -> ChunkEntry | None:
    """The entry of a chunk written by an earlier run, or None if it must be made (again)."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return None
    try:
        entry = config.from_dict(ChunkEntry, json_files.read_json(sidecar), str(sidecar))
        check_chunk(path, entry.bytes, entry.sha256)
    except (ConfigError, DataError):
        return None
    return entry if (entry.name, entry.first, entry.examples) == (path.name, first, examples) else None


def _write(path: Path, arrays: Arrays, first: int, examples: int) -> ChunkEntry:
    files.write_bytes(path, save(arrays))
    edges = sum(int(arrays[f"{d}.edges"][-1]) for d in DIRECTIONS)
    entry = ChunkEntry(path.name, first, examples, edges, path.stat().st_size, files.sha256_file(path))
    json_files.write_json(path.with_suffix(".json"), config.to_dict(entry))
    return entry
