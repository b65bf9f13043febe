"""One optimizer step: count, forward and backward per micro-batch, agree that all is finite, update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glomo_dist.data import Batch
from glomo_dist.model.graph_stats import row_means
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.pretrain.settings.config import PretrainConfig, accumulation
from glomo_dist.pretrain.steps import objective
from glomo_dist.pretrain.steps.clock import Clock
from glomo_dist.pretrain.steps.engine import optimizer_step


@dataclass
class StepResult:
    """What one step did, the same on every rank but for `suspects`.

    loss: mean nats per predicted unit, without the penalty.  targets: predicted units.  units: units read.
    grad_norm: global, before clipping.
    applied: False if loss or gradient was not finite and the weights stayed as they were.
    stats: of the graphs, [layers][heads], means over the rows of all passes and ranks; empty unless asked for.
    suspects: this rank's rows of the batch in backward passes whose loss was not finite.
    """

    loss: float
    targets: int
    units: int
    grad_norm: float
    applied: bool
    stats: dict[str, list[list[float]]]
    suspects: list[int]


def train_step(
    engine: Any, batch: Batch, config: PretrainConfig, ranks: Ranks, clock: Clock, with_stats: bool
) -> StepResult:
    """batch: this rank's share of the global batch.

    From the first forward pass to the optimizer's step the host asks for work and waits for none of it, so that a GPU
    need not wait for the host.
    """
    positions, predicted = _positions(batch, config)
    targets, units = map(int, ranks.sum([predicted, int(batch.lengths.sum())]))
    micro, passes = accumulation(config, ranks.world)
    scale = objective.loss_scale(ranks.world, passes, targets)
    sequences = _sequences(batch, positions, ranks.device)
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    counted = torch.zeros((), dtype=torch.float64, device=ranks.device)
    graph_sums: torch.Tensor | None = None
    engine.module.collect_stats = with_stats
    finite = []
    clock.lap("data")
    for i in range(passes):
        terms = engine(*_part(sequences, i, micro))
        total += terms.loss_sum.detach()
        counted += terms.targets
        if with_stats:
            sums = engine.module.last_sums
            graph_sums = sums if graph_sums is None else graph_sums + sums
        clock.lap("forward")
        scaled = (terms.loss_sum + terms.penalty) * scale
        finite.append(torch.isfinite(scaled))
        # times NaN, every gradient becomes NaN: no rank can miss it
        engine.backward(scaled * torch.where(finite[-1], 1.0, math.nan))
        clock.lap("backward")
        if i < passes - 1:
            engine.step()  # only counts the micro-batch
    applied, grad_norm = optimizer_step(engine, config.clip)
    # One sum for everything that ranks must agree on; a NaN loss anywhere makes it NaN everywhere.
    loss_sum, targets_seen = ranks.sum(torch.stack([total, counted]).tolist())
    assert int(targets_seen) == targets, (
        f"{targets} units to predict were expected, the model had {targets_seen}"
    )
    bad = [i for i, good in enumerate(torch.stack(finite).tolist()) if not good]
    suspects = [row for i in bad for row in range(i * micro, (i + 1) * micro)]
    clock.lap("optimizer")
    stats = {} if graph_sums is None else _means(graph_sums, ranks)
    return StepResult(loss_sum / max(targets, 1), targets, units, grad_norm, applied, stats, suspects)


@torch.no_grad()
def valid_loss(
    engine: Any, batches: list[Batch], config: PretrainConfig, ranks: Ranks, clock: Clock
) -> float:
    """Mean nats per predicted unit over `batches` (this rank's shares), dropout off; `micro_batch` rows at a time."""
    loss_sum, targets = 0.0, 0
    micro, passes = accumulation(config, ranks.world)
    engine.eval()
    for batch in batches:
        positions, _ = _positions(batch, config)
        sequences = _sequences(batch, positions, ranks.device)
        for i in range(passes):
            terms = engine(*_part(sequences, i, micro))
            loss_sum += float(terms.loss_sum)
            targets += int(terms.targets)
        clock.lap("valid")
    engine.train()
    loss_sum, total = ranks.sum([loss_sum, targets])
    return loss_sum / max(total, 1.0)


def _positions(batch: Batch, config: PretrainConfig) -> tuple[np.ndarray, int]:
    """The sampled units int64 [2, B, S], and how many units are predicted from them."""
    lengths, steps = batch.lengths.numpy(), config.model.decoder_steps
    segments = None if batch.segments is None else batch.segments.numpy()
    positions = objective.sample_positions(
        batch.ids.numpy(), lengths, config.positions_per_sequence, steps, config.seed, segments
    )
    return positions, objective.predicted_units(lengths, positions, steps, segments)


def _sequences(batch: Batch, positions: np.ndarray, device: torch.device) -> list[torch.Tensor]:
    """Arguments of the model's forward pass; the batch is the last dimension but one, or the only one."""
    given = [batch.tokens, batch.lengths, torch.from_numpy(positions)]
    if batch.segments is not None:
        given.append(batch.segments)
    return [x.to(device) for x in given]


def _part(sequences: list[torch.Tensor], number: int, rows: int) -> list[torch.Tensor]:
    """Of these arguments the micro-batch `number`, `rows` rows."""
    part = slice(number * rows, (number + 1) * rows)
    return [x[..., part, :] if x.ndim > 1 else x[part] for x in sequences]


def _means(graph_sums: torch.Tensor, ranks: Ranks) -> dict[str, list[list[float]]]:
    """The graph statistics of the whole step from this rank's sums, by one sum over ranks."""
    summed = torch.tensor(ranks.sum(graph_sums.flatten().tolist()), dtype=torch.float64)
    return {name: mean.tolist() for name, mean in row_means(summed.view(graph_sums.shape)).items()}
