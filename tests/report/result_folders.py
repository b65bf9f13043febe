"""Result folders with chosen numbers, written through the types that the program itself writes with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from glomo_dist.evaluate.attempt import Job, write_error
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.json_files import write_json
from glomo_dist.transfer.job import FinetuneJob, needs_graphs
from glomo_dist.transfer.result import Epoch, MixedGraph, Result


def job(arm: str, seed: int, **fields) -> FinetuneJob:
    graphs = "/gone/store" if needs_graphs(arm) else None
    return FinetuneJob(**{"task": "sst2", "arm": arm, "seed": seed, "graphs": graphs, **fields})


def result(work: FinetuneJob, test: float, **fields) -> Result:
    plain = Result(
        format="glomo-result", version=2, job=to_dict(work), task=work.task, task_version=1, arm=work.arm,
        seed=work.seed, metric="accuracy", test=test, metrics={"accuracy": test}, dev=test, best_epoch=2,
        curve=(Epoch(1, 0.7, 0.5, 1.0), Epoch(2, 0.6, test, 2.0)), seconds=2.0, majority=0.5,
        classes=("bad", "good"), examples={"train": 10, "dev": 5, "test": 5}, skipped={}, parameters=100,
        components=("G0.0", "G0.1") if work.needs_graphs else (),
        mixtures=(MixedGraph("forward", 1.0, (0.25, 0.75)), MixedGraph("backward", 1.0, (0.5, 0.5)))
        if work.needs_graphs
        else (),
        fingerprints={"data": "d" * 16, "features": None, "graphs": None, "model": None}, code="0.1.0",
        without_vector=None, unknown_to_predictor=None,
    )  # fmt: skip
    return dataclasses.replace(plain, **fields)


def id_of(work: FinetuneJob) -> str:
    return (
        f"{work.task}-{work.arm}-{work.features.replace('/', '_')}-s{work.seed}-{work.train_size}-{work.lr}"
    )


def write(
    folder: Path, results: list[Result], failed: dict[FinetuneJob, str] | None = None, missing=()
) -> Path:
    """failed: job -> the last line of its traceback.  missing: jobs that are planned and have nothing."""
    failed = failed or {}
    works = [FinetuneJob(**r.job) for r in results] + list(failed) + list(missing)
    write_json(
        folder / "plan.json",
        {
            "format": "glomo-evaluation",
            "version": 1,
            "plan": {},
            "command": "glomo evaluate --recipe <demo>",
            "jobs": [{"id": id_of(work), "job": to_dict(work)} for work in works],
        },
    )
    for one in results:
        one.write(folder / "results" / id_of(FinetuneJob(**one.job)) / "result.json")
    for work, line in failed.items():
        write_error(Job(id_of(work), work), folder, 1.0, line, f"Traceback (most recent call last):\n{line}")
    return folder


NONE = {0: 0.70, 1: 0.72, 2: 0.74}
PRETRAINED = {0: 0.71, 1: 0.74, 2: 0.77}  # differences 1, 2, 3 points


def scores(arm, values, **fields):
    return [result(job(arm, seed, **fields), value) for seed, value in values.items()]
