"""Fan-out of jobs over an executor: skip what is finished, write down what fails, resume by running again."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from glomo_dist.evaluate.attempt import (
    RESULT,
    Job,
    Outcome,
    Run,
    attempt,
    is_finished,
    job_folder,
    read_object,
    remove_stale,
    result_files,
    write_error,
)
from glomo_dist.runtime.errors import ConfigError, GlomoError, Interrupted
from glomo_dist.runtime.files import before_first, entries, only_one, remove_leftovers, writing
from glomo_dist.runtime.fingerprint import command_line
from glomo_dist.runtime.json_files import write_json
from glomo_dist.runtime.paths import output
from glomo_dist.runtime.progress import bar, say
from glomo_dist.runtime.secrets import shown_in
from glomo_dist.runtime.signals import ASKING, as_interrupt

PLAN, PLAN_FORMAT, PLAN_VERSION = "plan.json", "glomo-evaluation", 1
Check = Callable[[Path, Sequence[Job], Sequence[Job]], None]  # output folder, finished jobs, jobs to do
_GO_ON = "run the same command again to go on."


class Executor(Protocol):
    """Runs jobs somewhere and yields each outcome as soon as it is known, in any order.

    Every job yields exactly one outcome, also when it raises, hangs or dies, and has its `result.json` or
    `error.json` by then. Closing the iterator early (Ctrl-C, a signal) stops what is running.
    """

    def outcomes(self, run: Run, jobs: Sequence[Job], out: Path) -> Iterator[Outcome]: ...


class InProcess:
    """One job after the other in this process: for a debugger, for tests, for machines without Ray."""

    def outcomes(self, run: Run, jobs: Sequence[Job], out: Path) -> Iterator[Outcome]:
        for job in jobs:
            began = time.monotonic()
            try:
                with _alarm(job.time_limit_seconds):
                    outcome = attempt(run, job, out)
            except _TimeLimitReached:
                outcome = time_limit_error(job, out, time.monotonic() - began)
            yield outcome


@dataclass(frozen=True)
class Summary:
    """What came of an evaluation. failed: outcomes with their error, in the order they came."""

    jobs: int
    finished_before: int
    finished: int
    failed: tuple[Outcome, ...]
    seconds: float

    def main_reason(self) -> tuple[Outcome, int]:
        """The first outcome with the most frequent error, and how many jobs have it; there must be a failed one."""
        (error, count), *_ = Counter(outcome.error for outcome in self.failed).most_common(1)
        return next(outcome for outcome in self.failed if outcome.error == error), count

    def __str__(self) -> str:
        parts = [f"{self.finished} of {self.jobs} jobs finished in {self.seconds:.0f} s"]
        if self.finished_before:
            parts.append(f"{self.finished_before} were finished before")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        return ", ".join(parts)


def evaluate(
    jobs: Sequence[Job],
    run: Run,
    out: str | Path,
    executor: Executor,
    *,
    plan: dict[str, Any] | None = None,
    read: Callable[[Path], object] = read_object,
    check: Check | None = None,
) -> Summary:
    """Run every job that has no result under `out` yet.

    run: the job function, `Job.work -> result` (for transfer: `glomo_dist.transfer.finetune.run`).
    plan: the resolved description of the evaluation, saved in `out`/plan.json beside the list of jobs.
    read: of a job's result.json; where it raises GlomoError the file is damaged or of another version: it is
        renamed, not to be taken for a result, and the job runs again.
    check: called with `out`, the jobs that are to be skipped as finished and those to do, before
        anything is written there; raises GlomoError where that would be wrong.
    Failed jobs are in the summary and on disk; they do not stop the others, and the next call retries them.
    Raises GlomoError if `out` holds something else, another process is evaluating into it, or it cannot be written;
    Interrupted after SIGTERM, SIGUSR1 or SIGHUP, with the same left behind as by Ctrl-C.
    """
    out = output(out).absolute()
    _require_jobs(jobs)
    with writing(out):
        _require_evaluation_folder(out)
        out.mkdir(parents=True, exist_ok=True)
    with only_one(out, "evaluating"), _signals_stop():
        began = time.monotonic()
        with writing(out):
            todo = [job for job in jobs if not is_finished(out, job.id, read)]
        before = len(jobs) - len(todo)
        if check is not None:
            waiting = {job.id for job in todo}
            check(out, [job for job in jobs if job.id not in waiting], todo)
        with writing(out):
            _say_left_out(out, jobs)
            remove_leftovers(out, f"{PLAN}.*")
            remove_stale(out)
        _write_plan(out, plan or {}, jobs)
        with writing(out):
            for job in todo:
                _set_aside(job_folder(out, job.id) / RESULT)
        if before:
            say(f"evaluate: {before} of {len(jobs)} jobs are finished already, {len(todo)} to do.")
        failed: list[Outcome] = []
        finished = 0
        outcomes = executor.outcomes(run, todo, out) if todo else iter(())
        with (
            contextlib.closing(_as_generator(outcomes)) as stream,
            bar(total=len(jobs), initial=before, desc="evaluate", unit="job") as progress,
        ):
            try:
                for outcome in stream:
                    if outcome.error is None:
                        finished += 1
                    else:
                        if all(outcome.error != other.error for other in failed):
                            say(f"evaluate: {outcome.id} failed: {outcome.error}")
                        failed.append(outcome)
                    progress.set_postfix(failed=len(failed), refresh=False)
                    progress.update()
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):  # the terminal may be what is gone
                    # Those on disk: also what a worker finished and nobody heard of.
                    kept = sum(is_finished(out, job.id, read) for job in jobs)
                    say(f"evaluate: stopped. {kept} of {len(jobs)} results are kept in {out}; {_GO_ON}")
                raise
        return Summary(len(jobs), before, finished, tuple(failed), time.monotonic() - began)


def _write_plan(out: Path, plan: dict[str, Any], jobs: Sequence[Job]) -> None:
    content = {
        "format": PLAN_FORMAT,
        "version": PLAN_VERSION,
        "plan": shown_in(plan),
        "command": command_line(),
        "jobs": [{"id": job.id, "job": shown_in(vars(job.work))} for job in jobs],
    }
    write_json(out / PLAN, content)


def time_limit_error(job: Job, out: Path, seconds: float, last_words: str = "") -> Outcome:
    """`write_error` for a job over its time limit.  last_words: of its worker."""
    message = (
        f"time limit: still running after {seconds:.0f} s, the limit is {job.time_limit_seconds:g} s. "
        f"Raise time_limit_seconds or make the job smaller."
    )
    return write_error(job, out, seconds, message, "\n".join(filter(None, [message, last_words])))


def _as_generator(outcomes: Iterator[Outcome]) -> Generator[Outcome, None, None]:
    """With `close`, which other iterators have not."""
    yield from outcomes


def _set_aside(result: Path) -> None:
    """Rename a file in the place of a result, where `read` has found that it is none."""
    if result.exists():
        aside = result.with_name(f"{RESULT}.unreadable")
        result.replace(aside)
        say(f"evaluate: {result} cannot be read as a result; it is now {aside.name}, and the job runs again.")


def _say_left_out(out: Path, jobs: Sequence[Job]) -> None:
    """That a mistyped plan takes results out of the report is said before it replaces the one in the folder."""
    ids = {job.id for job in jobs}
    left = sum(path.parent.name not in ids for path in result_files(out))
    if left:
        say(
            f"evaluate: earlier results in {out} that are not of this plan: {left}. `glomo report` leaves them out; "
            "give another --out to keep both."
        )


def _require_jobs(jobs: Sequence[Job]) -> None:
    """ConfigError unless they are jobs in a list, each with an id of its own."""
    strangers = [job for job in jobs if not isinstance(job, Job)] if isinstance(jobs, Sequence) else [jobs]
    if strangers:
        raise ConfigError(
            f"evaluate: jobs must be a list of Job, got {type(strangers[0]).__name__}. plan_jobs(plan) gives those "
            "of an EvaluationPlan."
        )
    seen: set[str] = set()
    for job in jobs:
        if job.id in seen:
            raise ConfigError(f"two jobs of the evaluation have the id {job.id!r}; each job may appear once.")
        seen.add(job.id)


def _require_evaluation_folder(out: Path) -> None:
    if out.is_file():
        raise GlomoError(f"output {out} is a file; a folder was expected. Choose another name.")
    # One of which the plan is lost has results still, worth more than the plan, which is written anew.
    new = out.is_dir() and not (out / PLAN).exists() and not any(result_files(out))
    if new and entries(out) - before_first(out, PLAN):
        raise GlomoError(
            f"output folder {out} is not empty and holds no evaluation (no {PLAN}). "
            f"Choose another one, or delete it first."
        )


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """Take ASKING in the block as Ctrl-C is taken, and say which one came."""
    with as_interrupt(ASKING) as came:
        try:
            yield
        except (KeyboardInterrupt, OSError):  # or what was to be said on a terminal that is gone
            if not came:
                raise
            raise Interrupted(f"stopped by {came[0]}; {_GO_ON}") from None


class _TimeLimitReached(BaseException):
    """Not an Exception, so that a job which catches those still ends."""


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Interrupt the block after `seconds`, and every second from then on: Python drops what is raised in a
    `__del__`, and so may the job. Only Python's main thread can be interrupted so."""
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("a time limit in process works in the main thread only. Use the Ray executor.")

    def ring(signal_number: int, frame: types.FrameType | None) -> None:
        raise _TimeLimitReached

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
