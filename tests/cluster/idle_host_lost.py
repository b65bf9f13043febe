"""Two evaluations on the Ray of node-0, the second one begun when a host is lost: `python idle_host_lost.py OUT`.

The first has a job for each of the two hosts. When both have nothing to do, it makes OUT.idle and waits for OUT.lost.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from glomo_dist.evaluate.attempt import Job
from glomo_dist.evaluate.executor import evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor
from glomo_dist.evaluate.ray_start import running_ray


@dataclass(frozen=True)
class Meeting:
    """folder: where it leaves a mark, and waits for as many as `people`."""

    name: str
    folder: str
    people: int


def run(meeting: Meeting) -> dict[str, str]:
    folder = Path(meeting.folder)
    folder.mkdir(exist_ok=True)
    (folder / meeting.name).touch()
    while len(list(folder.iterdir())) < meeting.people:
        time.sleep(0.05)
    time.sleep(0.6)  # longer than Ray keeps a worker for the next job
    return {"name": meeting.name}


def meetings(names: str, folder: Path, people: int) -> list[Job]:
    return [Job(name, Meeting(name, str(folder), people)) for name in names]


def main(out: Path) -> None:
    with running_ray(address="node-0:6379"):
        evaluate(meetings("ab", out.with_suffix(".both"), 2), run, out / "both", RayExecutor())
        time.sleep(1)  # until each host has heard that the other one has nothing to do
        out.with_suffix(".idle").touch()
        while not out.with_suffix(".lost").exists():
            time.sleep(0.01)
        print(evaluate(meetings("cde", out.with_suffix(".one"), 1), run, out / "one", RayExecutor()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
