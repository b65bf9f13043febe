"""The transfer half of the paper: mixed graphs M = Σ_c w_c P_c, applied to features H, and fused with them.

B batch, T units, D feature width, C components (layers, heads, and the products down the layers).
"""

from __future__ import annotations

from typing import get_args

import torch
from glomo_kernels import SparseGraph, graph_mix
from torch import Tensor, nn

from glomo_dist.runtime.config import whole
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.readers.kinds import FusionKind

Graphs = tuple[SparseGraph, SparseGraph]  # forward (j < i), backward (j > i)


class GraphMixture(nn.Module):
    """`mixtures` mixed graphs per direction, each with its own weights and scale, applied to the features.

    conditioned: the weights of a unit's row come from its own features (softmax of a linear map), else one
        vector for the task. Both start as the plain mean of the components.
    scale: of every mixed graph at the start; from 0, the task decides whether it wants any of it.
    Raises ConfigError for sizes that are no whole numbers from 1.
    Initialised without random numbers, so that the rest of a model starts the same whatever the graphs are.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mixtures: int = 1,
        conditioned: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        width, layers = whole("mixture: width", width, 1), whole("mixture: layers", layers, 1)
        self.heads = whole("mixture: heads", heads, 1)
        self.mixtures = mixtures = whole("mixture: mixtures", mixtures, 1)
        components = (2 * layers - 1) * self.heads
        self.logits = nn.Parameter(torch.zeros(2, mixtures, components))
        self.condition = nn.Parameter(torch.zeros(2, mixtures, components, width)) if conditioned else None
        self.scale = nn.Parameter(torch.full((2, mixtures), float(scale)))

    def weights(self, features: Tensor) -> Tensor:
        """[2, mixtures, C] for the task, or conditioned on features [B, T, D]: [2, mixtures, B, T, C]."""
        if self.condition is None:
            return self.logits.softmax(-1)
        logits = torch.einsum("btd,xmcd->xmbtc", features, self.condition)
        return (logits + self.logits[:, :, None, None]).softmax(-1)

    def forward(self, features: Tensor, graphs: Graphs) -> Tensor:
        """[B, T, D] -> [B, T, 2 · mixtures · D]: forward mixtures first.

        Raises ValueError unless `graphs` is a pair of them.
        """
        pair = isinstance(graphs, (tuple, list)) and len(graphs) == 2
        if not pair or not all(isinstance(graph, SparseGraph) for graph in graphs):
            raise ValueError(
                "GraphMixture: graphs must be a pair of SparseGraph, forward and backward, as from GraphStore.batch "
                f"or Glomo.graphs, got {type(graphs).__name__}."
            )
        weights = self.weights(features)
        mixed = [
            self.scale[direction, m] * graph_mix(graph, weights[direction, m], features, heads=self.heads)
            for direction, graph in enumerate(graphs)
            for m in range(self.mixtures)
        ]
        return torch.cat(mixed, -1)

    def window(self, features: Tensor, lengths: Tensor, size: int | None) -> Tensor:
        """What `forward` gives for the graph with equal weights on the `size` nearest units before (after) each.

        size None: on all of them, the uniform graph.
        """
        mixed = window_mix(features, lengths, size)
        return torch.cat([self.scale[x, m] * mixed[x] for x in range(2) for m in range(self.mixtures)], -1)


def window_mix(features: Tensor, lengths: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Means of the features of the `size` nearest real units before each unit, and of those after it; O(T), no graph.

    features [B, T, D], lengths [B], size None: all of them -> two [B, T, D]; zero in padding rows and where there is
    no such unit.
    """
    T = features.shape[1]
    size = min(size or T, T)
    at = torch.arange(T, device=features.device)
    real = (at < lengths[:, None])[..., None]  # [B, T, 1]
    # Of all that stands before each place, and before the end: [B, T + 1, D]. In float64, since means are differences
    # of them, in which the error of long sums would stay.
    sums = nn.functional.pad((features * real).cumsum(1, dtype=torch.float64), (0, 0, 1, 0))
    first, last = (at - size).clamp(min=0), (at + 1 + size).clamp(max=T)
    before = (at - first).clamp(min=1)[:, None]
    after = (torch.minimum(last, lengths[:, None]) - at - 1).clamp(min=1)[..., None]
    forward = (sums[:, :-1] - sums[:, first]) / before
    backward = (sums[:, last] - sums[:, 1:]) / after
    return forward.to(features.dtype) * real, backward.to(features.dtype) * real


class Fusion(nn.Module):
    """[H ; M H] by concatenation, or [H ; gate] with gate = linear ⊙ sigmoid(linear) over [H ; all M H].

    width: D; mixed: how many mixed graphs, both directions together.  `out` is the resulting width.
    Raises ConfigError for sizes that are no whole numbers.
    """

    def __init__(self, kind: FusionKind, width: int, mixed: int) -> None:
        super().__init__()
        if kind not in get_args(FusionKind):
            raise ConfigError(f"fusion must be one of {', '.join(get_args(FusionKind))}, got {kind!r}.")
        self.width, self.mixed = whole("fusion: width", width, 1), whole("fusion: mixed", mixed, 0)
        fused = width * (1 + mixed)
        self.linear = nn.Linear(fused, 2 * width) if kind == "gate" else None
        self.out = fused if self.linear is None else 2 * width

    def forward(self, features: Tensor, mixed: Tensor) -> Tensor:
        """features [B, T, D], mixed [B, T, mixed · D] -> [B, T, out]. Raises ValueError for other widths."""
        expected, got = (self.width, self.mixed * self.width), (features.shape[-1], mixed.shape[-1])
        if got != expected:
            raise ValueError(
                f"Fusion: features and mixed must be {expected[0]} and {expected[1]} wide (width and mixed · width), "
                f"got {got[0]} and {got[1]}. `mixed` is 2 · mixtures of the GraphMixture."
            )
        both = torch.cat([features, mixed], -1)
        if self.linear is None:
            return both
        return torch.cat([features, nn.functional.glu(self.linear(both))], -1)
