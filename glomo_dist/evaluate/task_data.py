"""What task data tell of jobs before one runs.

Are finished results of the data, and of the task's file, as they are now (an id has the path of the data, a result
the fingerprints of both)? Do the graph stores and the training sizes of the jobs to do fit them?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from glomo_dist.evaluate.attempt import RESULT, Job, job_folder
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.runtime.progress import say
from glomo_dist.transfer.finetune import demands_of_data, require_fit
from glomo_dist.transfer.registry import file_content, get_task
from glomo_dist.transfer.result import Result

Read = Callable[[Path], Result]
# Task, its file, source, max_examples: what its data depend on.
Set = tuple[str, str | None, str | None, int | None]


def require_fitting_data(
    out: Path, finished: Sequence[Job], todo: Sequence[Job], read: Read = Result.read
) -> None:
    """The `check` of `evaluate` for jobs of `finetune.run`.  read: of a result's file.

    Each set that finished results are of, or that a job to do makes demands on, is read here once. Raises DataError
    if it, or the file of its task, is not what the results are of, or it is not what a graph store of a job to do is
    of, and ConfigError if such a job asks for more training examples than it has. A set that cannot be read is an
    error where a job is still to read it, else a warning: results may outlive their data. A task to do that was given
    no source, and needs one, is a DataError before anything else is read.
    """
    done, waiting = _by_set(finished), _by_set(todo)
    for key in sorted({**waiting, **done}, key=lambda key: key[2] is not None):  # without a source first
        results = [read(job_folder(out, job.id) / RESULT) for job in done.get(key, [])]
        _check_set(out, key, results, waiting.get(key, []))


def reader_of(jobs: Sequence[Job]) -> Read:
    """The `read` of `evaluate` for jobs of `finetune.run`: DataError also for the result of another job.

    Each result is read once: one that is whole is not written again while the evaluation has its folder.
    """
    works = {job.id: to_dict(job.work) for job in jobs}

    @cache  # of what was read, not of errors
    def read(path: Path) -> Result:
        result = Result.read(path)
        result.require_of(works[path.parent.name], path)
        return result

    return read


def _check_set(out: Path, key: Set, results: Sequence[Result], todo: Sequence[Job]) -> None:
    name, file, source, max_examples = key
    _require_same_file(out, file, results)
    found = {_content(r.task_version, r.fingerprints["data"]) for r in results if r.fingerprints.get("data")}
    demanding = [job for job in todo if source is None or demands_of_data(job.work)]
    if not found and not demanding:
        return
    task = get_task(name, file)
    what = f"the data of task {name!r}" + (f" in {source}" if source is not None else "")
    say(f"evaluate: reading {what}: do they fit its jobs ({len(results)} finished, {len(todo)} to do)?")
    try:
        data = task.data(source, max_examples)
    except GlomoError as e:
        if todo:
            raise
        say(
            f"WARNING: evaluate: {what} cannot be read any more; its finished jobs are taken as they are. {e}"
        )
        return
    now = _content(task.version, data.fingerprint)
    if found - {now}:
        raise DataError(
            f"{out}: {what} have changed since its finished jobs: their results are of "
            f"{', '.join(sorted(found))}, now it is {now}. Choose another --out for the new data, or put the old "
            "back. Nothing was changed."
        )
    # Seeds and, but for their size, arms make no difference here.
    alike = {(job.work.graphs, job.work.max_units, job.work.train_size): job.work for job in demanding}
    for work in alike.values():
        require_fit(work, task, data)


def _require_same_file(out: Path, file: str | None, results: Sequence[Result]) -> None:
    """An older result does not say what its task's file was."""
    found = {content for r in results if (content := r.fingerprints.get("task_file"))}
    now = file_content(file)
    if found - {now}:
        raise DataError(
            f"{out}: {file} has changed since its finished jobs: their results are of fingerprint "
            f"{', '.join(sorted(found))}, now it is {now}. Choose another --out for the new task, or put the old "
            "file back. Nothing was changed."
        )


def _by_set(jobs: Sequence[Job]) -> dict[Set, list[Job]]:
    sets = defaultdict(list)
    for job in jobs:
        work = job.work
        sets[work.task, work.task_file, work.task_source, work.max_examples].append(job)
    return dict(sets)


def _content(version: int, fingerprint: str | None) -> str:
    """Both count: a new version may measure the same data in another way."""
    return f"fingerprint {fingerprint} (version {version} of the task)"
