"""Everything that can happen to jobs on a cluster of two nodes, at once: `python cluster_faults.py OUT MARKS`.

Two Ray nodes on this machine, a core each. A worker is killed, one node is killed while it works, a job raises, one
hangs. The last line printed has the failed jobs and why, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from evaluate_jobs import Work, run
from ray.cluster_utils import Cluster

from glomo_dist.evaluate.attempt import Job
from glomo_dist.evaluate.executor import evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor

GOOD = 5


def good_jobs(marks: str) -> list[Job]:
    return [Job(f"slow-{value}", Work("slow", marks, value)) for value in range(GOOD)]


def main(out: str, marks: str) -> None:
    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    second = cluster.add_node(**small)
    jobs = good_jobs(marks)
    jobs[2:2] = [
        Job("raise-0", Work("raise", marks)),
        Job("hang-0", Work("hang", marks), time_limit_seconds=1.0),
    ]
    killer = threading.Thread(target=harm, args=(Path(out), lambda: cluster.remove_node(second, False)))
    killer.start()
    try:
        summary = evaluate(jobs, run, out, RayExecutor(address=cluster.address, max_retries=2))
    finally:
        killer.join()
        cluster.shutdown()
    print(json.dumps({failed.id: failed.error for failed in summary.failed}))


def harm(out: Path, lose_a_node) -> None:
    """When a job works on each node: kill the worker of one, then the second node."""
    deadline = time.monotonic() + 120
    while len(working := [json.loads(p.read_text()) for p in out.glob("results/slow-*/running.json")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(working[0]["pid"], signal.SIGKILL)
    lose_a_node()


if __name__ == "__main__":
    main(*sys.argv[1:])
