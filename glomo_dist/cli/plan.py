"""Say what a pretraining run will cost before it is started: parameters, memory, arithmetic, time.

Examples:
  glomo plan --recipe wiki_small --data shards --ranks 2 --units-per-second 9000
  glomo plan --recipe ancestor_text_paper --ranks 8 --teraflops 40 --model.sparsity topk

The settings are those of `glomo pretrain`. Memory and arithmetic are estimates from the formulas in this file;
a short run with --steps 20 --warmup-steps 0 gives the true speed (`units_per_second` in log.jsonl).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from glomo_kernels.decoder_loss.triton_impl import CHUNK_BYTES
from tyro.conf import arg

from glomo_dist import recipes
from glomo_dist.cli.arguments import parse, recipe_of
from glomo_dist.data import WindowOrder
from glomo_dist.model import Glomo
from glomo_dist.model.config import LARGEST_VOCABULARY
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.config import accumulation
from glomo_dist.pretrain.deepspeed_settings import bucket
from glomo_dist.pretrain.run_folder import resolve
from glomo_dist.runtime.errors import ConfigError

MIB = 1 << 20
BACKWARD = 3  # forward + backward is three times the arithmetic of forward: each product has two gradients


@dataclass(frozen=True)
class Plan:
    config: Annotated[PretrainConfig, arg(name="")]
    recipe: str = "base"
    """Where the defaults come from."""
    data: str | None = None
    """Shards: gives the vocabulary and the size of an epoch."""
    ranks: int = 1
    """Processes."""
    vocabulary: int = 30_000
    """Units, where neither --data nor the recipe says it."""
    units_per_second: float | None = None
    """Measured speed of all ranks together, for the hours."""
    teraflops: float | None = None
    """Arithmetic per second that one rank really reaches, in 10^12, for the hours."""


@dataclass(frozen=True)
class Cost:
    """embedding: parameters of it (tied to the softmax).  others: all other parameters.
    flops_per_unit: forward and backward.  units_per_step: units read by all ranks, at most.
    """

    embedding: int
    others: int
    flops_per_unit: float
    units_per_step: int

    @property
    def parameters(self) -> int:
        return self.embedding + self.others


def cost(config: PretrainConfig) -> Cost:
    """The parameters are counted (on the meta device, without memory); the arithmetic is estimated.

    Per unit and direction, 2 per multiply-add: the convolutions and linear maps of both CNNs and of every graph
    layer; per layer and head 2·d_g·T/2 for the scores and 2·(d/K)·T/2 for mixing, as only j < i counts. The decoder
    runs at the sampled positions only: D steps of its GRU, and the softmax over all units.
    """
    m = config.model
    with torch.device("meta"):
        model = Glomo(m)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    total = sum(sizes.values())
    embedding = m.vocab_size * m.width
    decoder = sum(n for name, n in sizes.items() if ".decoder." in name)
    # one cell for all layers; coupled, one graph predictor's convolutions too
    every_layer = (".cell.", "_cnn.") if m.coupled else (".cell.",)
    repeated = (m.layers - 1) * sum(
        n for name, n in sizes.items() if any(part in name for part in every_layer)
    )
    # j < i halves the pairs, two directions double them
    pairs = m.layers * m.heads * (m.graph_width + m.width // m.heads) * config.window
    sampled = min(1.0, config.positions_per_sequence / config.window)
    predicted = sampled * m.decoder_steps * (decoder + 2 * embedding)
    forward = 2 * ((total - embedding - decoder) + repeated + pairs + predicted)
    return Cost(embedding, total - embedding, BACKWARD * forward, config.global_batch * config.window)


def state_bytes(config: PretrainConfig, parameters: int, ranks: int) -> dict[str, float]:
    """Bytes per rank that a ZeRO stage holds: parameters, gradients, optimizer states, the bucket of gradients.

    Stage 1 shares out the optimizer states, 2 the gradients too, 3 the parameters too. With ZeRO the optimizer
    updates float32 copies of its share, whatever the precision, and gradients are collected in a bucket.
    """
    bf16 = config.precision == "bf16"
    numbers = 2 if bf16 else 4
    moments = 2 if config.optimizer == "adamw" else (1 if config.momentum else 0)
    stage = config.zero_stage
    return {
        "parameters": parameters * numbers / (ranks if stage >= 3 else 1),
        "gradients": parameters * numbers / (ranks if stage >= 2 else 1),
        "optimizer": parameters * 4 * (moments + (stage >= 1)) / (ranks if stage >= 1 else 1),
        "bucket": bucket(parameters) * numbers if stage >= 1 else 0,
    }


def activation_bytes(config: PretrainConfig, ranks: int) -> float:
    """Bytes per rank of one backward pass, roughly: features of every layer and direction, and what the loss holds.

    `decoder_loss` has some of the sampled units' logits at a time, and keeps the gradient of the words' weights in
    float32, of both directions. The graphs do not count: `affinity_mix` keeps none. With activation checkpointing
    (pretrain/activations.py) the inputs and outputs of its parts are kept, among them every layer's scores, and one
    part's inside at a time.
    """
    m = config.model
    micro, _ = accumulation(config, ranks)
    width = 2 if config.precision == "bf16" else 4
    convolutions = 3 * (m.key_layers + m.query_layers) * m.width
    scores, layer = 2 * m.heads * m.graph_width, 10 * m.width
    per_unit = 2 * (convolutions + m.layers * (scores + layer))
    if config.activation_checkpointing:
        kept = convolutions if m.norm == "batch" else 3 * m.width
        per_unit = 2 * (kept + m.layers * (scores + m.width)) + max(convolutions, layer)
    sampled = min(config.positions_per_sequence, config.window) * m.decoder_steps
    logits = min(sampled * micro * m.vocab_size * width, CHUNK_BYTES)
    return float(micro * config.window * per_unit * width + logits + 2 * m.vocab_size * m.width * 4)


def main(argv: Sequence[str]) -> None:
    recipe = recipe_of(argv, "base")
    command = parse(Plan, argv, name="plan", description=__doc__, default=Plan(recipes.get(recipe), recipe))
    config = command.config
    if not 2 <= command.vocabulary <= LARGEST_VOCABULARY:
        raise ConfigError(
            f"vocabulary (--vocabulary) must be from 2 to {LARGEST_VOCABULARY:,} units, got {command.vocabulary}."
        )
    if command.ranks < 1:
        raise ConfigError(f"ranks must be at least 1, got {command.ranks}.")
    index = None
    if command.data is not None:
        job = resolve(dataclasses.replace(config, valid_every=0, schedule="constant"), command.data, "unused")
        index, config = job.index, dataclasses.replace(config, model=job.config.model)
    elif config.model.vocab_size == 0:
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, vocab_size=command.vocabulary)
        )
    for line in describe(command, config, cost(config)):
        print(line)
    if index is not None:
        order = WindowOrder(index, config.window, config.seed, windows=config.windows)
        steps = order.per_epoch / config.global_batch
        print(f"an epoch        {index.tokens:,} units in {order.per_epoch:,} rows = {steps:,.1f} steps")
        print(f"rows            {100 * order.filled():.1f} % full, if all were {config.window} units long")
        print(f"the run         {config.steps / steps:,.2f} epochs")


def describe(command: Plan, config: PretrainConfig, estimate: Cost) -> list[str]:
    """The lines to print."""
    ranks = command.ranks
    micro, passes = accumulation(config, ranks)
    states = state_bytes(config, estimate.parameters, ranks)
    activations = activation_bytes(config, ranks)
    parts = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in states.items())
    others = []
    for stage in (0, 1, 2, 3) if config.precision == "fp32" else (1, 2, 3):
        sizes = state_bytes(dataclasses.replace(config, zero_stage=stage), estimate.parameters, ranks)
        others.append(f"ZeRO {stage}: {sum(sizes.values()) / MIB:,.0f}")
    units = estimate.units_per_step * config.steps
    flops = estimate.flops_per_unit * units
    lines = [
        f"parameters      {estimate.parameters:,}, of these {estimate.embedding:,} in the embedding of "
        f"{config.model.vocab_size:,} units",
        f"a step          {config.global_batch} sequences of at most {config.window} units = "
        f"{estimate.units_per_step:,} units; per rank {passes} x {micro} sequences",
        f"the run         {config.steps:,} steps, {units:,} units",
        f"memory, rank    {(sum(states.values()) + activations) / MIB:,.0f} MiB with ZeRO {config.zero_stage} on "
        f"{ranks} ranks: {parts}, activations about {activations / MIB:,.0f}",
        f"  by stage      {', '.join(others)} MiB without activations",
        f"arithmetic      {estimate.flops_per_unit / 1e6:,.2f} MFLOP per unit, {flops / 1e15:,.2f} PFLOP in all",
    ]
    for name in ("units_per_second", "teraflops"):
        value = getattr(command, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} must be positive, got {value}.")
    if speed := command.units_per_second:
        lines.append(f"time            {units / speed / 3600:,.2f} h at {speed:,.0f} units/s")
    if speed := command.teraflops:
        hours = flops / (speed * 1e12 * ranks) / 3600
        lines.append(f"time            {hours:,.2f} h at {speed:g} TFLOP/s on each of {ranks} ranks")
    return lines
