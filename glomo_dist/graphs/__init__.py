"""A task's graphs: computed once from a frozen predictor (export), read back fast in training (store).

Names are imported when they are used, as in `glomo_dist.data`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.graphs.export import export_graphs
    from glomo_dist.graphs.index import GraphStoreError, StoreInfo, StoreMeta
    from glomo_dist.graphs.live import LiveGraphs
    from glomo_dist.graphs.store import GraphStore

__all__ = [
    "GraphStore",
    "GraphStoreError",
    "LiveGraphs",
    "StoreInfo",
    "StoreMeta",
    "export_graphs",
]

__getattr__ = lazy.names(
    __name__,
    {
        "export": ("export_graphs",),
        "index": ("GraphStoreError", "StoreInfo", "StoreMeta"),
        "live": ("LiveGraphs",),
        "store": ("GraphStore",),
    },
)
