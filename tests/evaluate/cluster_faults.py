"""Everything that can happen to jobs on a cluster of two nodes, at once: `python cluster_faults.py OUT MARKS`.

Two Ray nodes on this machine, a core each. A worker is killed, one node is killed while it works, a job raises, one
hangs. The last line printed has the failed jobs and why, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
from evaluate_jobs import HARM_DONE, Work, run
from ray._private.node import Node
from ray.cluster_utils import Cluster

from glomo_dist.evaluate.attempt import Job
from glomo_dist.evaluate.executor import evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor

GOOD = 5


def good_jobs(marks: str) -> list[Job]:
    return [Job(f"waits-{value}", Work("waits", marks, value)) for value in range(GOOD)]


def main(out: str, marks: str) -> None:
    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    second = cluster.add_node(**small)
    jobs = good_jobs(marks)
    jobs[2:2] = [
        Job("raise-0", Work("raise", marks)),
        Job("hang-0", Work("hang", marks), time_limit_seconds=1.0),
    ]
    killer = threading.Thread(target=harm, args=(Path(out), Path(marks), cluster, second))
    killer.start()
    try:
        summary = evaluate(jobs, run, out, RayExecutor(address=cluster.address, max_retries=2))
    finally:
        killer.join()
        cluster.shutdown()
    print(json.dumps({failed.id: failed.error for failed in summary.failed}))


def harm(out: Path, marks: Path, cluster: Cluster, second: Node) -> None:
    """When a job works on each node: kill the worker of the first, then the second node."""
    deadline = time.monotonic() + 240
    try:
        while len(working := at_work(out, marks)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        raylets = {process.process.pid for process in second.all_processes["raylet"]}
        (on_the_first,) = (pid for pid in working if psutil.Process(pid).ppid() not in raylets)
        os.kill(on_the_first, signal.SIGKILL)
        cluster.remove_node(second, allow_graceful=False)
        for pid in working:  # those of a node that is lost do not go on
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        (marks / HARM_DONE).touch()


def at_work(out: Path, marks: Path) -> list[int]:
    """Process ids of the jobs that have left their mark: one that is killed before that is not begun twice."""
    found = []
    for path in out.glob("results/waits-*/running.json"):
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            pid = json.loads(path.read_text())["pid"]
            found += [pid] if list(marks.glob(f"{path.parent.name}.*")) else []
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
