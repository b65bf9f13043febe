"""One rank of a run: joins the group, holds the run folder, trains."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from glomo_dist.pretrain import ranks as group
from glomo_dist.pretrain import run_folder
from glomo_dist.pretrain.loop import train
from glomo_dist.pretrain.ranks import Ranks
from glomo_dist.pretrain.run_folder import Job
from glomo_dist.runtime import files


def run(job: Job) -> Path:
    """Join the group that the environment describes, train, leave. Returns the run folder."""
    ranks = group.join()
    try:
        return run_in(job, ranks)
    finally:
        group.leave()


def run_in(job: Job, ranks: Ranks) -> Path:
    """Train as one of `ranks`, alone in the run folder; every rank calls this."""
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(run_folder.locked(job.out))
            description = run_folder.describe(job, ranks.world)
            run_folder.check(job.out, description)
            files.write_json(job.out / run_folder.CONFIG, description)

        ranks.from_first(begin)
        train(job, ranks)
    return job.out
