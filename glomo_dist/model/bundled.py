"""Predictors that come with the package, in glomo_dist/predictors: `glomo:NAME` where a model's folder is asked for.

Each is a model's folder as `glomo pretrain` writes it, in float16, with a README.md that says what it was trained on,
by which commands, and what its graphs are worth.
"""

from __future__ import annotations

from pathlib import Path

from glomo_dist.runtime.errors import CheckpointError

PREFIX = "glomo:"
FOLDER = Path(__file__).parents[1] / "predictors"


def names() -> list[str]:
    """NAME of each, in alphabetical order."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def bundled(path: str | Path) -> Path | None:
    """The folder that `glomo:NAME` stands for; None for another path. Raises CheckpointError where there is none."""
    if not str(path).startswith(PREFIX):
        return None
    if (name := str(path).removeprefix(PREFIX)) not in names():
        there = ", ".join(PREFIX + each for each in names()) or "none in this installation"
        raise CheckpointError(
            f"{path}: no such predictor comes with glomo-dist; there is {there}. Or give a run folder."
        )
    return FOLDER / name
