"""Draw the graphs that a predictor sees in texts or images of your own: one page, and the numbers of each head.

Examples:
  glomo draw glomo:wiki_small "After the war the king returned to the city."  # the predictor that comes along
  glomo draw run "A gentle, funny film." "It never really works." --out graphs.html
  glomo draw run "A gentle, funny film." --random-seed 0 --out random.html   # what an untrained one sees
  glomo draw run photos/ --images 8                                          # of a predictor trained on pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from glomo_dist.cli.arguments import parse, shown_as
from glomo_dist.runtime import collector
from glomo_dist.runtime.config import check_least
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.signals import STOP_SIGNALS, as_interrupt


@dataclass(frozen=True)
class Draw:
    model: Positional[Annotated[str, arg(metavar="RUN")]]
    """Run folder of `glomo pretrain`, a model folder in it, or glomo:wiki_small, which comes along."""
    inputs: Positional[Annotated[tuple[str, ...], shown_as("required", "TEXT-OR-IMAGE [...]")]]
    """Texts; of a predictor of pixels image files, folders, .npz or idx files, resized to what it knows."""
    out: str = "graphs.html"
    """File to write; an older one is replaced."""
    random_seed: int | None = None
    """Use a predictor of the same sizes with fresh random parameters."""
    keep: int | None = 8
    """Largest edges kept per unit, layer and head, renormalised (None: all)."""
    max_units: int = 60
    """Words of a text that are read and drawn."""
    images: int = 4
    """Images that are drawn at most."""
    tokenised: bool = False
    """The units of a text are what stands between spaces, as in a .tokens file."""


def main(argv: Sequence[str]) -> None:
    command = parse(Draw, argv, name="draw", description=__doc__)
    check_least(command, "draw: ", 1, "keep", "max_units", "images")
    if not command.inputs:
        raise ConfigError(
            'draw: nothing to draw. Give texts or images, e.g. glomo draw RUN "A gentle, funny film."'
        )
    # Seconds, which neither --help nor a mistyped flag should wait for.
    with collector.importing():
        from glomo_dist.report.look import as_text, look

    with as_interrupt(STOP_SIGNALS):  # no temporary file stays
        seen = look(
            command.model, command.inputs, command.out, keep=command.keep, random_seed=command.random_seed,
            max_units=command.max_units, images=command.images, tokenised=command.tokenised,
        )  # fmt: skip
    print(as_text(seen))
    say(f"graphs: {Path(command.out).resolve()}")
