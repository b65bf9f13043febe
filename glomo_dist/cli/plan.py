"""Say what a pretraining run will cost before it is started: parameters, memory, arithmetic, time.

Examples:
  glomo plan --recipe wiki_small --data shards --ranks 2 --units-per-second 9000
  glomo plan --recipe ancestor_text_paper --ranks 8 --teraflops 40 --model.sparsity topk

The settings are those of `glomo pretrain`. Memory and arithmetic are estimates from the formulas in pretrain/cost.py;
a short run with --steps 20 --warmup-steps 0 gives the true speed (`units_per_second` in log.jsonl).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from glomo_dist import recipes
from glomo_dist.cli.arguments import parse, recipe_of, shown_as
from glomo_dist.data import WindowOrder
from glomo_dist.model.config import LARGEST_VOCABULARY
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.cost import Cost, activation_bytes, cost, state_bytes
from glomo_dist.pretrain.settings import idle
from glomo_dist.pretrain.settings.config import accumulation
from glomo_dist.pretrain.settings.resolve import resolve_inputs
from glomo_dist.runtime.config import check_least, check_positive
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.words import counted

MIB = 1 << 20
VOCABULARY = 30_000
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True)
class Plan:
    config: Annotated[PretrainConfig, arg(name="")]
    recipe: str = "base"
    """Where the defaults come from."""
    data: str | None = None
    """Shards: gives the vocabulary and the size of an epoch."""
    ranks: int = 1
    """Processes."""
    vocabulary: Annotated[int | None, shown_as(f"default: {VOCABULARY:,}", "INT")] = None
    """Units, where neither --data nor the settings of the model say it."""
    units_per_second: float | None = None
    """Measured speed of all ranks together, for the hours."""
    teraflops: float | None = None
    """Arithmetic per second that one rank really reaches, in 10^12, for the hours."""


def main(argv: Sequence[str]) -> None:
    recipe = recipe_of(argv, "base")
    command = parse(Plan, argv, name="plan", description=__doc__, default=Plan(recipes.get(recipe), recipe))
    config = command.config
    vocabulary = VOCABULARY if command.vocabulary is None else command.vocabulary
    if not 2 <= vocabulary <= LARGEST_VOCABULARY:
        raise ConfigError(
            f"vocabulary (--vocabulary) must be from 2 to {LARGEST_VOCABULARY:,} units, got {vocabulary}."
        )
    if command.vocabulary is not None and (command.data is not None or config.model.vocab_size):
        raise ConfigError(
            f"vocabulary (--vocabulary) {vocabulary} is for a plan without --data and --model.vocab-size, which say "
            "it. Leave it out."
        )
    check_least(command, "", 1, "ranks")
    check_positive(command, "", "units_per_second", "teraflops")
    index = None
    if command.data is not None:
        found = resolve_inputs(config, command.data, validates=False)
        index, config = found.index, found.config
    elif config.model.vocab_size == 0:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocabulary))
    for line in idle.warnings(config):
        say(line)
    for line in describe(command, config, cost(config)):
        print(line)
    if index is not None:
        order = WindowOrder(index, config.row_units, config.seed, windows=config.windows)
        steps = order.per_epoch / config.global_batch
        print(
            f"an epoch        {index.tokens:,} units in {counted(order.per_epoch, 'row')} = {steps:,.1f} steps"
        )
        print(f"rows            {100 * order.filled():.1f} % full, if all were {config.row_units} units long")
        print(f"the run         {config.steps / steps:,.2f} epochs")


def describe(command: Plan, config: PretrainConfig, estimate: Cost) -> list[str]:
    """The lines to print."""
    ranks = command.ranks
    micro, passes = accumulation(config, ranks)
    stages = state_bytes(config, estimate.parameters, ranks)
    states = stages[config.zero_stage]
    activations = activation_bytes(config, ranks)
    parts = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in states.items())
    by_stage = ", ".join(f"ZeRO {stage}: {sum(sizes.values()) / MIB:,.0f}" for stage, sizes in stages.items())
    units = estimate.units_per_step * config.steps
    flops = estimate.flops_per_unit * units
    lines = [
        f"parameters      {estimate.parameters:,}, of these {estimate.embedding:,} in the embedding of "
        f"{config.model.vocab_size:,} units",
        f"a step          {counted(config.global_batch, 'sequence')} of at most {config.row_units} units = "
        f"{estimate.units_per_step:,} units; per rank {passes} x {counted(micro, 'sequence')}",
        f"the run         {counted(config.steps, 'step')}, {units:,} units",
        f"memory, rank    {(sum(states.values()) + activations) / MIB:,.0f} MiB with ZeRO {config.zero_stage} on "
        f"{counted(ranks, 'rank')}: {parts}, activations about {activations / MIB:,.0f}; beside the program's own",
        f"  by stage      {by_stage} MiB without activations",
        f"arithmetic      {_readable(estimate.flops_per_unit)} per unit, {_readable(flops)} in all",
    ]
    if config.deepspeed is not None:
        lines.append(
            f"DeepSpeed       {config.deepspeed}: its reduce_bucket_size counts, what it offloads is not taken off"
        )
    if speed := command.units_per_second:
        lines.append(f"time            {units / speed / 3600:,.2f} h at {speed:,.0f} units/s")
    if speed := command.teraflops:
        hours = flops / (speed * 1e12 * ranks) / 3600
        each = f" on each of {ranks} ranks" if ranks > 1 else ""
        lines.append(f"time            {hours:,.2f} h at {speed:g} TFLOP/s{each}")
    return lines


def _readable(flops: float) -> str:
    """With the largest prefix that leaves at least 1, of mega to peta."""
    size, prefix = next((one for one in PREFIXES if flops >= one[0]), PREFIXES[-1])
    return f"{flops / size:,.2f} {prefix}FLOP"
