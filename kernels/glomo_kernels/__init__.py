"""Sparse affinity graphs and what is done with them: four ops, each with a reference and faster backends.

    affinity_mix     scores -> sparse weights -> weighted mean of the values (pretraining)
    affinity_graph   the same weights as a sparse graph (export)
    graph_mix        weighted sum of many sparse graphs applied to features (transfer)
    decoder_loss     linear + cross-entropy without all the logits (pretraining)

Importing this package registers the ops and does nothing else: no compiled code is loaded and no device is
touched before an op is called. `GLOMO_KERNELS=reference` (or another backend) forces a backend.
"""

from glomo_kernels.affinity_graph import affinity_graph
from glomo_kernels.affinity_mix import AffinityStats, affinity_mix
from glomo_kernels.decoder_loss import decoder_loss
from glomo_kernels.dispatch import BackendUnavailable, backends
from glomo_kernels.graph import SparseGraph
from glomo_kernels.graph_mix import graph_apply, graph_mix

__all__ = [
    "AffinityStats",
    "BackendUnavailable",
    "SparseGraph",
    "affinity_graph",
    "affinity_mix",
    "backends",
    "decoder_loss",
    "graph_apply",
    "graph_mix",
]
