"""Equal jobs one after the other in this process, and fanned out on a local Ray: `python tests/evaluate/speedup.py`.

Prints both times, Ray's start and end included, and how they compare with an even division among the cores; checks
that the results are the same. On an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from glomo_dist.evaluate import EvaluationPlan, InProcess, RayExecutor, evaluate, plan_jobs
from glomo_dist.transfer.finetune import run


def found(out: Path) -> list[tuple[str, float, float]]:
    results = [(p.parent.name, json.loads(p.read_text())) for p in sorted(out.glob("results/*/result.json"))]
    return [(name, result["test"], result["curve"][-1]["train_loss"]) for name, result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=56, help="of each job")
    arguments = parser.parse_args()
    settings = {"epochs": arguments.epochs, "patience": arguments.epochs, "hidden": 64}
    plan = EvaluationPlan(
        ("digits",), {"uniform": "uniform"}, seeds=tuple(range(arguments.jobs)), settings=settings
    )
    jobs = plan_jobs(plan)
    seconds, results = [], []
    with tempfile.TemporaryDirectory(prefix="glomo-speedup-") as folder:
        for name, executor in (("serial", InProcess()), ("ray", RayExecutor(cores=arguments.cores))):
            began = time.perf_counter()
            summary = evaluate(jobs, run, Path(folder, name), executor)
            seconds.append(time.perf_counter() - began)
            assert not summary.failed and summary.finished == len(jobs), summary
            results.append(found(Path(folder, name)))
    assert results[0] == results[1], "the two runs found different numbers"
    serial, fanned = seconds
    print(json.dumps({
        **dataclasses.asdict(jobs[0])["work"], "jobs": arguments.jobs, "cores": arguments.cores,
        "serial_seconds": round(serial, 1), "ray_seconds": round(fanned, 1),
        "of_even_division": round(fanned / (serial / arguments.cores), 3),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
