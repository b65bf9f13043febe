"""Graphs computed by the frozen predictor while a job runs, with the numbers that a store would have.

The same code as the export makes the same chunks, float16 weights included, when they are first asked for; they stay
in memory instead of in files. So the results are those of a store to the bit, on the same machine and with the
export's default batch size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.graphs.chunks import CHUNK_UNITS, Arrays, chunk_ranges
from glomo_dist.graphs.index import FORMAT, VERSION, ChunkEntry, SplitEntry, StoreInfo, StoreMeta
from glomo_dist.graphs.predict import BATCH_UNITS, check_ids, predict_chunk
from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.glomo import Glomo
from glomo_dist.runtime import config
from glomo_dist.runtime.fingerprint import code_version


class LiveGraphs(GraphStore):
    """A `GraphStore` without files.

    splits: per split the predictor's unit ids of each example, as for `export_graphs`.  folder: of the model.
    """

    def __init__(
        self,
        model: Glomo,
        splits: dict[str, list[np.ndarray[Any, Any]]],
        *,
        meta: StoreMeta,
        keep: int | None,
        folder: Path,
    ) -> None:
        check_ids(model, splits, f"graphs of {folder}")
        self._model, self._examples = model.eval(), splits
        entries = {}
        for name, examples in splits.items():
            lengths = np.array([len(e) for e in examples], np.int64)
            ranges = chunk_ranges(lengths, CHUNK_UNITS)
            parts = tuple(
                ChunkEntry(f"{name}-{first}", first, last - first, 0, 0, "") for first, last in ranges
            )
            entries[name] = SplitEntry(len(examples), int(lengths.sum()), 0, parts)
        info = StoreInfo(
            format=FORMAT,
            version=VERSION,
            **config.to_dict(meta),
            layers=model.config.layers,
            heads=model.config.heads,
            keep=keep,
            code=code_version(),
            splits={},
        )
        super().__init__(folder, info, entries)

    def _load(self, entry: ChunkEntry) -> Arrays:
        examples = self._examples[entry.name.rpartition("-")[0]][entry.first : entry.first + entry.examples]
        return predict_chunk(self._model, examples, self.info.keep, BATCH_UNITS, lambda units: None)
