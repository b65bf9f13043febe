"""Runs under torchrun: does a list of jobs one after another in one group of ranks (starting ranks is slow).

torchrun ... tests/pretrain/rank_jobs.py JOBS.json
JOBS.json: list of {"do": "train" | "poison", "config": {...}, "data": folder, "out": folder}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from glomo_dist.data import Stream
from glomo_dist.model import Glomo
from glomo_dist.pretrain import PretrainConfig, run_folder, worker
from glomo_dist.pretrain import ranks as group
from glomo_dist.pretrain.engine import build_engine, set_learning_rate, whole_state
from glomo_dist.pretrain.ranks import Ranks
from glomo_dist.pretrain.run_folder import Job
from glomo_dist.pretrain.step import Clock, train_step
from glomo_dist.runtime.config import from_dict
from glomo_dist.runtime.errors import GlomoError


def poison(job: Job, ranks: Ranks) -> dict[str, Any]:
    """Three steps; in the second the last rank's gradient of one parameter has a single NaN."""
    torch.manual_seed(0)
    engine = build_engine(Glomo(job.config.model), job.config, ranks)
    stream = Stream(
        job.index, window=job.config.window, seed=0, global_batch=job.config.global_batch, rank=ranks.rank,
        world=ranks.world,
    )  # fmt: skip
    set_learning_rate(engine, 0.01)
    bad = {"now": False}

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if bad["now"] and ranks.rank == ranks.world - 1:
            gradient = gradient.clone()
            gradient.view(-1)[0] = float("nan")
        return gradient

    engine.module.embedding.weight.register_hook(spoil)
    clock, applied, changed = Clock(ranks.device), [], []
    before = whole_state(engine)
    for step in range(3):
        bad["now"] = step == 1
        result = train_step(engine, stream.batch(step), job.config, ranks, clock, with_stats=False)
        after = whole_state(engine)
        applied.append(result.applied)
        changed.append(any(not torch.equal(before[name], after[name]) for name in before))
        before = after
    finite = all(bool(torch.isfinite(value).all()) for value in before.values())
    return {"applied": applied, "changed": changed, "finite": finite}


def main() -> None:
    ranks = group.join()
    for item in json.loads(Path(sys.argv[1]).read_text()):
        job = run_folder.resolve(
            from_dict(PretrainConfig, item["config"]), item["data"], item["out"], item.get("valid")
        )
        if item["do"] == "poison":
            result = poison(job, ranks)
            if ranks.first:
                job.out.with_suffix(".json").write_text(json.dumps(result))
            continue
        try:
            worker.run_in(job, ranks)
        except GlomoError as e:
            if ranks.first:
                job.out.with_suffix(".error").write_text(f"{type(e).__name__}: {e}")
    group.leave()


if __name__ == "__main__":
    main()
