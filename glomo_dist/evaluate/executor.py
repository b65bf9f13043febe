"""Fan-out of jobs over an executor: skip what is finished, write down what fails, resume by running again."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from glomo_dist.evaluate.attempt import (
    Job,
    Outcome,
    Run,
    attempt,
    is_finished,
    job_folder,
    read_object,
    write_error,
)
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.files import write_json
from glomo_dist.runtime.fingerprint import command_line
from glomo_dist.runtime.progress import bar, say

PLAN_FORMAT = "glomo-evaluation"
PLAN_VERSION = 1


class Executor(Protocol):
    """Runs jobs somewhere and yields each outcome as soon as it is known, in any order.

    Every job yields exactly one outcome, also when it raises, hangs or dies, and has its `result.json` or
    `error.json` by then. Closing the iterator early (Ctrl-C) stops what is running.
    """

    def outcomes(self, run: Run, jobs: Sequence[Job], out: Path) -> Iterator[Outcome]: ...


class InProcess:
    """One job after the other in this process: for a debugger, for tests, for machines without Ray."""

    def outcomes(self, run: Run, jobs: Sequence[Job], out: Path) -> Iterator[Outcome]:
        for job in jobs:
            started = time.time()
            try:
                with _alarm(job.time_limit_seconds):
                    outcome = attempt(run, job, out)
            except _TimeLimitReached:
                outcome = time_limit_error(job, out, time.time() - started)
            yield outcome


@dataclass(frozen=True)
class Summary:
    """What came of an evaluation. failed: outcomes with their error, in the order they came."""

    jobs: int
    finished_before: int
    finished: int
    failed: tuple[Outcome, ...]
    seconds: float

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
) -> Summary:
    """Run every job that has no result under `out` yet.

    run: the job function, `Job.work -> result` (for transfer: `glomo_dist.transfer.finetune.run`).
    plan: the resolved description of the evaluation, saved in `out`/plan.json beside the list of jobs.
    read: of a job's result.json; where it raises GlomoError the file is damaged or of another version: it is
        renamed, not to be taken for a result, and the job runs again.
    Failed jobs are in the summary and on disk; they do not stop the others, and the next call retries them.
    Raises GlomoError if `out` holds something else, or another process is evaluating into it.
    """
    out = Path(out).absolute()
    _require_unique(jobs)
    _require_evaluation_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        started = time.time()
        write_json(
            out / "plan.json",
            {
                "format": PLAN_FORMAT,
                "version": PLAN_VERSION,
                "plan": plan or {},
                "command": command_line(),
                "jobs": [{"id": job.id, "job": vars(job.work)} for job in jobs],
            },
        )
        todo = [job for job in jobs if not is_finished(out, job.id, read)]
        for job in todo:
            _set_aside(job_folder(out, job.id) / "result.json")
        before = len(jobs) - len(todo)
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
                        failed.append(outcome)
                        say(f"evaluate: {outcome.id} failed: {outcome.error}")
                    progress.set_postfix(failed=len(failed), refresh=False)
                    progress.update()
            except KeyboardInterrupt:
                say(
                    f"evaluate: stopped. {before + finished} of {len(jobs)} results are kept in {out}; "
                    f"run the same command again to go on."
                )
                raise
        return Summary(len(jobs), before, finished, tuple(failed), time.time() - started)


def time_limit_error(job: Job, out: Path, seconds: float, last_words: str = "") -> Outcome:
    message = (
        f"time limit: still running after {seconds:.0f} s, the limit is {job.time_limit_seconds:g} s. "
        f"Raise time_limit_seconds or make the job smaller."
    )
    return write_error(job, out, seconds, message, "\n".join(filter(None, [message, last_words])))


def _as_generator(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    yield from outcomes


def _set_aside(result: Path) -> None:
    if result.exists():
        aside = result.with_name("result.json.unreadable")
        result.replace(aside)
        say(f"evaluate: {result} cannot be read as a result; it is now {aside.name}, and the job runs again.")


def _require_unique(jobs: Sequence[Job]) -> None:
    seen: set[str] = set()
    for job in jobs:
        if job.id in seen:
            raise ConfigError(f"two jobs of the evaluation have the id {job.id!r}; each job may appear once.")
        seen.add(job.id)
        if job.cpus < 1:
            raise ConfigError(f"job {job.id}: cpus must be at least 1, got {job.cpus}.")
        for name in ("memory_gb", "time_limit_seconds"):
            value = getattr(job, name)
            if value is not None and value <= 0:
                raise ConfigError(f"job {job.id}: {name} must be positive or none, got {value}.")


def _require_evaluation_folder(out: Path) -> None:
    if out.is_file():
        raise GlomoError(f"output {out} is a file; a folder was expected. Choose another name.")
    if out.is_dir() and any(out.iterdir()) and not (out / "plan.json").exists():
        raise GlomoError(
            f"output folder {out} is not empty and holds no evaluation (no plan.json). "
            f"Choose another one, or delete it first."
        )


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold a lock on the folder while evaluating; the system drops it if the process dies."""
    with open(out / ".lock", "w", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GlomoError(
                f"another process is evaluating into {out}. Wait for it, or choose another folder."
            ) from None
        yield


class _TimeLimitReached(BaseException):
    """Not an Exception, so that a job which catches those still ends."""


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Interrupt the block after `seconds`. Only Python's main thread can be interrupted so."""
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("a time limit in process works in the main thread only. Use the Ray executor.")

    def ring(signal_number: int, frame: types.FrameType | None) -> None:
        raise _TimeLimitReached

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
