"""Models trained with the paper authors' published code, computed by ours: same numbers, their names.

`load(state_dict, options)` takes a state dict with the authors' parameter names and their options (the names of
their command line: d, ntokens, nlayers, sparse_mode, no_gru, ...) and returns an `AncestorModel`. What differs
from `Glomo`, because the figures in `docs/numerics.md` depend on it: padding is masked only where a unit is looked
*at* (rows of padding units still carry weights), the backward direction reverses the padded sequence (so padding
comes first), `topk` counts from the padded length, and batch statistics include the convolutions' tails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from glomo_kernels import affinity_mix
from torch import Tensor, nn

from glomo_dist.model.ancestor_options import config_from_options
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.feature_predictor import Rows, gather_units
from glomo_dist.model.glomo import Direction, Glomo
from glomo_dist.model.graph_predictor import Scores, affinity_kind
from glomo_dist.model.io import require_numbers
from glomo_dist.runtime.errors import CheckpointError

# Our parameter names -> theirs. The decoder's `out.weight` is the embedding (tied).
NAMES = (
    (r"^embedding\.weight$", "enc_emb.weight"),
    (r"^forwards\.decoder\.rnn\.", "dec_net_fw.rnn_fw."),
    (r"^backwards\.decoder\.rnn\.", "dec_net_bw.rnn_fw."),
    (r"^forwards\.(graph|feature)_predictor\.", "st_predictor_fw."),
    (r"^backwards\.(graph|feature)_predictor\.", "st_predictor_bw."),
    (r"_cnn\.(\d+)\.conv\.", r"_cnn.\1.0."),
    (r"_cnn\.(\d+)\.norm\.", r"_cnn.\1.1."),
    (r"\b(key|query)_maps\.", r"\1_dot_trans."),
    (r"\bvalue_maps\.", "value_trans."),
    (r"\bthresholds\.", "sparse_trans."),
    (r"\bbiases$", "sparse_bias"),
    (r"\bcell\.", "gru_cell."),
)
COUNTER = ".num_batches_tracked"
TIED = ("dec_net_fw.out.weight", "dec_net_bw.out.weight")


def load(state_dict: Mapping[str, Tensor], options: Mapping[str, Any]) -> AncestorModel:
    """The authors' model with the given parameters and buffers, in the dtype of `state_dict`, in train mode.

    state_dict: their names, `enc_emb.weight`, `st_predictor_fw.key_cnn.0.0.weight`, ... as saved by their code.
    options: see `config_from_options`; `ntokens` and `d` are read from the embedding when missing.
    Raises CheckpointError naming the parameter that is missing, superfluous, of another shape or without numbers.

    The counters of batch norm, which nothing here depends on, may be missing: PyTorch of before 0.4.1 saved none.
    """
    options = dict(options)
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"ancestor state dict: {name} must be a tensor, got {type(value).__name__}."
            )
        if not name.endswith(COUNTER):
            require_numbers(value, f"ancestor state dict: {name}")
    embedding = state_dict.get("enc_emb.weight")
    if embedding is None:
        raise CheckpointError(
            "ancestor state dict: enc_emb.weight is missing; is this a model of the authors?"
        )
    if embedding.ndim != 2:
        raise CheckpointError(
            f"ancestor state dict: enc_emb.weight is {tuple(embedding.shape)}, expected (ntokens, d)."
        )
    for name, size in zip(("ntokens", "d"), embedding.shape, strict=True):
        if name not in options and f"config/{name}" not in options:
            options[name] = size
    model = AncestorModel(config_from_options(options)).to(embedding.dtype)
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | state_dict.keys()):
        ours = tuple(wanted[name].shape) if name in wanted else "no such parameter with these options"
        theirs = tuple(state_dict[name].shape) if name in state_dict else "missing"
        if name not in state_dict and (name in TIED or name.endswith(COUNTER)):
            continue
        if ours != theirs:
            raise CheckpointError(f"ancestor state dict: {name} is {theirs}, expected {ours}.")
        if name in TIED and not torch.equal(state_dict[name], embedding):
            raise CheckpointError(f"ancestor state dict: {name} must equal enc_emb.weight (tied).")
    model.load_state_dict({**wanted, **state_dict})
    return model


def _their_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


class AncestorModel(nn.Module):
    """The authors' computation on our modules. Parameters, buffers and state dict carry the authors' names."""

    def __init__(self, config: GlomoConfig) -> None:
        super().__init__()
        self.model = Glomo(config)
        self.config = config
        self.register_state_dict_post_hook(_to_their_names)
        self.register_load_state_dict_pre_hook(_to_our_names)

    def named_parameters(self, *arguments: Any, **keywords: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As `nn.Module.named_parameters`, under the authors' names."""
        for name, parameter in super().named_parameters(*arguments, **keywords):
            yield _their_name(name.removeprefix("model.")), parameter

    def named_buffers(self, *arguments: Any, **keywords: Any) -> Iterator[tuple[str, Tensor]]:
        """As `nn.Module.named_buffers`, under the authors' names."""
        for name, buffer in super().named_buffers(*arguments, **keywords):
            yield _their_name(name.removeprefix("model.")), buffer

    def forward(self, ids: Tensor, positions_forward: Tensor, positions_backward: Tensor) -> Tensor:
        """The training loss, see `loss`."""
        return self.loss(ids, positions_forward, positions_backward)

    def graphs(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, 2 * layers, K, T, T]: the layers of the forward direction, then of the backward one.

        ids [B, T] int64; mask [B, T], 1 for real units. Row i holds the weights with which unit i looks at others;
        both directions in the units' own order.
        """
        graphs = []
        for direction, e, m in self._directions(ids, mask):
            identity = torch.eye(ids.shape[1], dtype=e.dtype, device=e.device)
            for scores in self._scores(direction, e, m):
                shape = (*scores.queries.shape[:2], *identity.shape)
                graph = affinity_mix(
                    scores.queries,
                    scores.keys,
                    identity.expand(shape),
                    scores.threshold,
                    kind=affinity_kind(self.config),
                    topk=self._topk(ids.shape[1]),
                )
                graphs.append(graph.flip(-1, -2) if direction is self.model.backwards else graph)
        return torch.stack(graphs, dim=1)

    def outputs(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """[1 + 2 * layers, B, T, d]: the embedding, the forward layers' features, the backward layers'."""
        outputs = [self.model.embedding(ids)]
        for direction, e, m in self._directions(ids, mask):
            for features in self._features(direction, e, m):
                outputs.append(features.flip(1) if direction is self.model.backwards else features)
        return torch.stack(outputs)

    def loss(
        self,
        ids: Tensor,
        positions_forward: Tensor,
        positions_backward: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the units after the sampled ones, averaged over both directions.

        positions_* [S] int64: sampled units, shared by the batch; backward ones counted from the end.
        Raises ValueError for positions that have fewer than `dec_len` units after them.
        """
        B, T = ids.shape
        possible = T - self.config.decoder_steps
        for name, positions in (("forward", positions_forward), ("backward", positions_backward)):
            if not ((positions >= 0) & (positions < possible)).all():
                raise ValueError(
                    f"AncestorModel: positions_{name} must be from 0 to {possible - 1}, before the last "
                    f"{self.config.decoder_steps} of {T} units, got {positions.tolist()}"
                )
        losses = []
        ends = torch.full((B, 1), T, device=ids.device)
        for direction, e, m in self._directions(ids, mask):
            backward = direction is self.model.backwards
            at = (positions_backward if backward else positions_forward).expand(B, -1)
            states = gather_units(self._features(direction, e, m)[-1], at)
            tokens = ids.flip(1) if backward else ids
            total, count = direction.decoder(states, e, tokens, at, ends, self.model.embedding.weight)
            losses.append(total / count)
        return torch.stack(losses).mean()

    def _directions(
        self, ids: Tensor, mask: Tensor | None
    ) -> Iterator[tuple[Direction, Tensor, Tensor | None]]:
        e = self.model.embedding(ids)
        m = None if mask is None else mask.to(e.dtype)
        yield self.model.forwards, e, m
        yield self.model.backwards, e.flip(1), None if m is None else m.flip(1)

    def _scores(self, direction: Direction, e: Tensor, mask: Tensor | None) -> list[Scores]:
        keys, queries = direction.graph_predictor(e, mask)
        layers = [direction.graph_predictor.scores(i, keys, queries) for i in range(self.config.layers)]
        return layers if mask is None else [_hide(scores, mask) for scores in layers]

    def _features(self, direction: Direction, e: Tensor, mask: Tensor | None) -> list[Tensor]:
        """f^1 .. f^L, each [B, T, d]."""
        rows = Rows(topk=self._topk(e.shape[1]))
        state = direction.feature_predictor.start(e)
        features = []
        for layer, scores in enumerate(self._scores(direction, e, mask)):
            state = direction.feature_predictor.step(layer, state, scores, rows)
            features.append(state[0])
        return features

    def _topk(self, units: int) -> int | None:
        """k of all samples, from the padded length of the batch."""
        if self.config.sparsity != "topk":
            return None
        return int(min(max(math.sqrt(units) * self.config.topk_rate, 1), units))  # the rate may be huge


def _hide(scores: Scores, mask: Tensor) -> Scores:
    """Scores in which padding keys never get a weight, whatever the query: the authors mask keys, not rows.

    Without a threshold a zero key scores 0, which is weight 0. With one, an extra coordinate lowers the score of
    padding keys by 1e30, below any threshold.
    """
    queries, keys, threshold = scores
    keep = mask[:, None, :, None]
    keys = keys * keep
    if threshold is not None:
        lowered = ((keep - 1) * 1e30).expand(*keys.shape[:3], 1)
        keys = torch.cat([keys, lowered], dim=-1)
        queries = torch.cat([queries, torch.ones_like(queries[..., :1])], dim=-1)
    return Scores(queries, keys, threshold)


def _to_their_names(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [n for n in state if n.startswith(f"{prefix}model.")]:
        state[prefix + _their_name(name.removeprefix(f"{prefix}model."))] = state.pop(name)
    for tied in TIED:
        state[prefix + tied] = state[f"{prefix}enc_emb.weight"]


def _to_our_names(module: AncestorModel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    ours = {_their_name(n): n for n in module.model.state_dict()}
    for name in [n for n in state if n.startswith(prefix)]:
        bare = name.removeprefix(prefix)
        value = state.pop(name)
        if bare not in TIED:
            state[f"{prefix}model.{ours.get(bare, bare)}"] = value
