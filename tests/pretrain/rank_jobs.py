"""Does a list of jobs one after another in one group of ranks (starting ranks is slow, also when they are forked).

python tests/pretrain/rank_jobs.py JOBS.json RANKS
JOBS.json: list of {"do": "train" | "poison", "config": {...}, "data": folder, "out": folder}
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401 (so that the ranks need not)
import torch
from torch.multiprocessing import start_processes

from glomo_dist.data import Stream
from glomo_dist.model import Glomo
from glomo_dist.pretrain import PretrainConfig, worker
from glomo_dist.pretrain.output.state import snapshot
from glomo_dist.pretrain.ranks import group
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.pretrain.settings.resolve import ResolvedRun, resolve
from glomo_dist.pretrain.steps.clock import Clock
from glomo_dist.pretrain.steps.engine import build_engine, set_learning_rate
from glomo_dist.pretrain.steps.step import train_step
from glomo_dist.runtime.config import from_dict
from glomo_dist.runtime.errors import GlomoError

POISONED = ("", "nan gradient", "", "inf gradient", "", "nan loss", "", "-inf loss", "")


def poison(job: ResolvedRun, ranks: Ranks) -> dict[str, Any]:
    """A step for each of POISONED: on the last rank, in its first backward pass, one number is not finite."""
    torch.manual_seed(0)
    engine = build_engine(Glomo(job.config.model), job.config, ranks)
    stream = Stream(
        job.index, window=job.config.window, seed=0, global_batch=job.config.global_batch, rank=ranks.rank,
        world=ranks.world,
    )  # fmt: skip
    set_learning_rate(engine, 0.01)
    now = {"number": None, "of": "", "passes": 0}
    decode = engine.module.forwards.decoder.forward

    def due(what: str) -> bool:
        return ranks.rank == ranks.world - 1 and now["of"] == what and now["passes"] == 1

    def spoil_loss(*arguments: Any) -> Any:
        now["passes"] += 1
        loss, count = decode(*arguments)
        return (loss * now["number"] if due("loss") else loss), count

    def spoil_gradient(gradient: torch.Tensor) -> torch.Tensor:
        if due("gradient"):
            gradient = gradient.clone()
            gradient.view(-1)[0] = now["number"]
        return gradient

    engine.module.forwards.decoder.forward = spoil_loss
    engine.module.embedding.weight.register_hook(spoil_gradient)
    clock, applied, changed, suspects = Clock(ranks.device), [], [], []
    before = snapshot(engine)
    for step, what in enumerate(POISONED):
        number, _, now["of"] = what.partition(" ")
        now["number"], now["passes"] = float(number or 0), 0
        result = train_step(engine, stream.batch(step), job.config, ranks, clock, with_stats=False)
        after = snapshot(engine)
        differs = any(not torch.equal(before[name], after[name]) for name in before) or len(before) != len(
            after
        )
        applied.append(result.applied)
        changed.append(any(ranks.gather(differs)))
        suspects.append(ranks.gather(result.suspects))
        before = after
    finite = all(bool(torch.isfinite(value).all()) for value in before.values())
    return {"applied": applied, "changed": changed, "finite": all(ranks.gather(finite)), "suspects": suspects}


def work(rank: int, world: int, port: int, jobs: list[dict[str, Any]]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    ranks = group.join()
    for item in jobs:
        job = resolve(from_dict(PretrainConfig, item["config"]), item["data"], item["out"], item.get("valid"))
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
    # neither loaded for what is not compiled nor switched off for what a program may compile
    assert "torch._inductor.compile_fx" not in sys.modules
    assert "TORCHDYNAMO_DISABLE" not in os.environ
    group.leave()


if __name__ == "__main__":
    jobs, world = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    start_processes(work, (world, port, jobs), world, start_method="fork")
