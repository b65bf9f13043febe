"""Pretrain a graph predictor on shards. Run the same command again to resume; a finished run is left alone.

Examples:
  glomo pretrain shards --out run --recipe wiki_small --ranks 2
  glomo pretrain shards --out run --recipe wiki_small --steps 20000 --model.layers 3 --model.sparsity topk
  torchrun --nproc-per-node 8 -m glomo_dist.cli pretrain shards --out run --recipe base   # your own launcher

The recipe sets all defaults; every other flag changes one of them. The resolved settings are kept in OUT/config.json,
a row per --log-every steps in OUT/log.jsonl, the trained model in OUT/model.

Recipes:
RECIPES

Exit codes: 0 finished; 2 something to mend; 70 a rank died, 71 a rank hung, 75 stopped by SIGTERM or SIGUSR1 after
saving, 130 by Ctrl-C: after these four the same command continues the run (docs/reliability.md).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from glomo_dist import recipes
from glomo_dist.cli.arguments import parse, recipe_of, shown_as
from glomo_dist.pretrain import PretrainConfig, pretrain
from glomo_dist.runtime.progress import say


@dataclass(frozen=True)
class Pretrain:
    config: Annotated[PretrainConfig, arg(name="")]
    shards: Positional[Annotated[str, arg(metavar="SHARDS")]]
    """Folder that `glomo prepare` wrote, or its address: https://..., s3://..."""
    out: str
    """Run folder; new, or one in which this very run began."""
    recipe: str = "base"
    """Where the defaults come from."""
    ranks: int = 1
    """Processes on this machine (under torchrun its own number counts); may change when a run is continued."""
    valid: Annotated[str | None, shown_as("default: those that `glomo prepare --valid-share` put aside")] = (
        None
    )
    """Validation shards."""
    restarts: int = 0
    """How often all ranks are started again after one died or hung."""


def main(argv: Sequence[str]) -> None:
    recipe = recipe_of(argv, "base")
    command = parse(
        Pretrain, argv, name="pretrain",
        description=(__doc__ or "").replace("RECIPES", recipes.overview()),
        default=Pretrain(recipes.get(recipe), tyro.MISSING, tyro.MISSING, recipe),
    )  # fmt: skip
    run = pretrain(
        command.config,
        command.shards,
        command.out,
        command.ranks,
        valid=command.valid,
        restarts=command.restarts,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun all ranks come here
        say(f"next: glomo export {shlex.quote(str(run))} --task NAME --source DATA --out graphs/NAME")
