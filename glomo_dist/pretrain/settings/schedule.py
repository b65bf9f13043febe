"""The learning rate as a pure function of the step and, for plateau, of the validation losses so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glomo_dist.pretrain.settings.config import PretrainConfig


@dataclass(frozen=True)
class Plateau:
    """What the plateau schedule remembers; part of every checkpoint."""

    best: float = math.inf
    bad: int = 0
    divided: int = 0

    def after(self, loss: float, patience: int) -> Plateau:
        """The state after one more validation loss."""
        if loss < self.best:
            return Plateau(loss, 0, self.divided)
        if self.bad + 1 >= patience:
            return Plateau(self.best, 0, self.divided + 1)
        return Plateau(self.best, self.bad + 1, self.divided)


def learning_rate(config: PretrainConfig, step: int, plateau: Plateau) -> float:
    """Rate of optimizer step `step` (the first is 0)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        way = config.steps - 1 - config.warmup_steps
        # way 0: the first step after the warm-up is the last
        share = (step - config.warmup_steps) / way if way > 0 else 1.0
        floor = config.final_lr_share
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))
    if config.schedule == "plateau":
        return config.lr / config.plateau_divisor**plateau.divided
    return config.lr


def exhausted(config: PretrainConfig, plateau: Plateau) -> bool:
    """True when the plateau schedule has come below 1 % of the initial rate: the authors stop there."""
    return config.schedule == "plateau" and config.plateau_divisor**-plateau.divided < 0.01
