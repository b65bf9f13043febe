"""Whether finished results are of the task data as they are now: an id has their path, a result their fingerprint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from glomo_dist.evaluate.attempt import Job, job_folder
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.runtime.progress import say
from glomo_dist.transfer.result import Result
from glomo_dist.transfer.task import get_task

Set = tuple[str, str | None, int | None]  # task, source, max_examples: what its data depend on


def require_same_data(out: Path, finished: Sequence[Job], todo: Sequence[Job]) -> None:
    """The `check` of `evaluate` for jobs of `finetune.run`.

    Each set that finished results are of is read here once. Raises DataError if it is not what they are of, and
    ConfigError if a job to do asks for more training examples than it has. A set that cannot be read is an error
    where a job is still to read it, else a warning: results may outlive their data. A task to do that was given no
    source, and needs one, is a DataError before the jobs of the others have run.
    """
    waiting = _by_set(todo)
    for name, source, max_examples in waiting:
        if source is None:
            get_task(name).load(None, max_examples)
    for key, jobs in _by_set(finished).items():
        results = [Result.read(job_folder(out, job.id) / "result.json") for job in jobs]
        found = {
            _content(r.task_version, r.fingerprints["data"]) for r in results if r.fingerprints.get("data")
        }
        if not found:
            continue
        name, source, max_examples = key
        task = get_task(name)
        what = f"the data of task {name!r}" + (f" in {source}" if source is not None else "")
        say(f"evaluate: reading {what}: are they those of the finished jobs ({len(jobs)})?")
        try:
            data = task.load(source, max_examples)
        except GlomoError as e:
            if key in waiting:
                raise
            say(
                f"WARNING: evaluate: {what} cannot be read any more; its finished jobs are taken as they are. {e}"
            )
            continue
        now = _content(task.version, data.fingerprint)
        if found != {now}:
            raise DataError(
                f"{out}: {what} have changed since its finished jobs: their results are of "
                f"{', '.join(sorted(found))}, now it is {now}. Choose another --out for the new data, or put the old "
                "back. Nothing was changed."
            )
        for job in waiting.get(key, ()):
            job.work.require_examples(len(data.splits["train"].labels))


def _by_set(jobs: Sequence[Job]) -> dict[Set, list[Job]]:
    sets = defaultdict(list)
    for job in jobs:
        sets[job.work.task, job.work.task_source, job.work.max_examples].append(job)
    return dict(sets)


def _content(version: int, fingerprint: str | None) -> str:
    """Both count: a new version may measure the same data in another way."""
    return f"fingerprint {fingerprint} (version {version} of the task)"
