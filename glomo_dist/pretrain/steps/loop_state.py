"""Where a run is, but for weights and optimizer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from glomo_dist.pretrain.settings.schedule import Plateau


@dataclass
class LoopState:
    """What the loop must remember besides weights and optimizer; goes into every checkpoint.

    step: optimizer steps done; it is also the whole state of the data stream.  bad_steps: skipped in a row.
    skipped: steps skipped in all.
    """

    step: int = 0
    bad_steps: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    skipped: int = 0

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LoopState:
        plateau = dict(value["plateau"])
        if plateau["best"] is None:
            plateau["best"] = math.inf
        return cls(value["step"], value["bad_steps"], Plateau(**plateau), value["skipped"])

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        if math.isinf(self.plateau.best):  # before the first validation; infinity is not JSON
            value["plateau"]["best"] = None
        return value
