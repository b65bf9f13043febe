"""Write the graphs that a frozen predictor sees in the inputs of a task. Run again to go on after a stop.

Examples:
  glomo export run --task sst2 --source sst2/ --out graphs/sst2
  glomo export glomo:wiki_small --task sst2 --source sst2/ --out graphs/sst2             # no pretraining of your own
  glomo export run --task sst2 --source sst2/ --out graphs/sst2-random --random-seed 0   # the baseline

Tasks: TASKS, or the path of a .py file (docs/transfer.md).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from glomo_dist.cli.arguments import parse, save_command
from glomo_dist.runtime import collector
from glomo_dist.runtime.devices import Device
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.signals import ASKING, as_interrupt
from glomo_dist.transfer.tasks import NAMES


@dataclass(frozen=True)
class Export:
    model: Positional[Annotated[str, arg(metavar="RUN")]]
    """Run folder of `glomo pretrain`, a model folder in it, or glomo:wiki_small, which comes along."""
    task: str
    """Name of the task, or a .py file with one of your own, which is run."""
    out: str
    """Graph store to write."""
    source: str | None = None
    """File, folder or URL of the task's data, where it does not come with the installed packages."""
    random_seed: int | None = None
    """Use a predictor of the same sizes with fresh random parameters: the baseline."""
    keep: int | None = 8
    """Largest edges kept per unit, layer and head, renormalised (None: all)."""
    max_units: int | None = None
    """Cut longer texts (None: the task's own limit)."""
    max_examples: int | None = None
    """Examples per split at most; give `glomo evaluate` the same."""
    batch_units: int = 16384
    """Units per forward pass."""
    device: Device = "cpu"
    """Where the predictor computes: cpu, or cuda for a GPU."""


def main(argv: Sequence[str]) -> None:
    command = parse(
        Export, argv, name="export", description=(__doc__ or "").replace("TASKS", ", ".join(NAMES))
    )
    # Seconds, which neither --help nor a mistyped flag should wait for.
    with collector.importing():
        from glomo_dist.transfer.export import export_task

    with as_interrupt(ASKING):  # no temporary file stays; the same command goes on
        store = export_task(
            command.task, command.model, command.out, source=command.source, random_seed=command.random_seed,
            keep=command.keep, max_units=command.max_units, max_examples=command.max_examples,
            batch_units=command.batch_units, device=command.device,
        )  # fmt: skip
        save_command(store, "export", command)
    say(f"next: {shlex.join(_next(command, store))}")


def _next(command: Export, store: Path) -> list[str]:
    """The evaluation of the graphs, on the same data cut in the same way."""
    from glomo_dist.transfer.registry import find_task

    arm = "pretrained" if command.random_seed is None else "random"
    words = ["glomo", "evaluate", "--tasks", command.task, "--arms", "none", "uniform", f"{arm}={store}"]
    words += ["--sources", f"{find_task(command.task)[0].name}={command.source}"] if command.source else []
    for name in ("max_examples", "max_units"):
        value = getattr(command, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return [*words, "--out", "results"]
