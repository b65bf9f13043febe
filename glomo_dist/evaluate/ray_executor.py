"""Jobs on the Ray that `ray_start.py` has started or found: handed over, watched, taken as soon as they are done.

A job whose worker died (killed, out of memory, a crash in compiled code) begins again; an exception is its result.
Ray's own retries are off: it does not tell of them, and a job that waits for one would seem to run on, to the end of
its time. Only paths and small dataclasses go through Ray; data and results are files, so on a cluster the output
folder and the inputs must be on storage that every node sees under the same path.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glomo_dist.evaluate.attempt import (
    RUNNING,
    Job,
    Outcome,
    Run,
    attempt,
    job_folder,
    log_tail,
    write_error,
)
from glomo_dist.evaluate.executor import time_limit_error
from glomo_dist.evaluate.ray_nodes import Nodes
from glomo_dist.evaluate.ray_start import WITHOUT_RAY, running_ray
from glomo_dist.runtime import packages
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.files import writing
from glomo_dist.runtime.json_files import read_json
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.words import counted

POLL_SECONDS = 0.5  # how often time limits are looked at; results are taken as soon as they come
LOOK_SECONDS = 2.0  # how often it is asked which nodes there are and which hosts are lost


@dataclass(frozen=True)
class RayExecutor:
    """cores: of the local Ray; None: all that this process may use. Ignored with `address`.

    address: of a running cluster ("auto", "host:6379", "ray://host:10001"); None: start a local Ray and stop
        it at the end. An already running one in this process (`ray.init` by the caller) is used as it is.
    max_retries: how often a job whose worker died is started again.
    Raises ConfigError where Ray is not installed.
    """

    cores: int | None = None
    address: str | None = None
    max_retries: int = 2

    def __post_init__(self) -> None:
        packages.require("ray", "jobs on Ray", "'ray[default]'", instead=WITHOUT_RAY)
        if self.cores is not None and self.cores < 1:
            raise ConfigError(f"cores of the local Ray (--cores) must be at least 1, got {self.cores}.")

    def outcomes(self, run: Run, jobs: Sequence[Job], out: Path) -> Iterator[Outcome]:
        """See `Executor`. Raises ConfigError if a job asks for more than a local Ray has."""
        with running_ray(self.cores, self.address) as left_at_the_end:
            fanout = _Fanout(run, jobs, out, self)
            try:
                yield from fanout.outcomes()
            finally:
                # else never: Ray dies if a task is over just when it is cancelled
                if not left_at_the_end:
                    fanout.cancel()


class _Running(NamedTuple):
    """A job that Ray has, and how long it has been at work on it."""

    job: Job
    clock: _Clock


class _Fanout:
    """The jobs of one evaluation on their way through Ray.

    pending: not handed to Ray yet, or to be handed to it again.  running: those it has, by the reference of the task.
    expired: id -> seconds of the jobs over their time limit.  lost: id -> how often the job lost its worker or host.
    told: what a job is known to wait for that no node has.  fewest: cores that a job asks for.
    remote: `attempt` as a task of Ray, without and with a GPU.
    nodes: at the last look.  dead: ids of the nodes that no job waits for any more.  look_at: when the next look is.
    """

    def __init__(self, run: Run, jobs: Sequence[Job], out: Path, settings: RayExecutor) -> None:
        """Raises ConfigError if a job asks for more than a local Ray has."""
        self.run, self.out, self.settings = run, out, settings
        self.nodes = Nodes()
        for job in jobs if settings.address is None else ():
            if why := self.nodes.too_small(job):
                raise ConfigError(f"{why}. Lower what the job asks for, or give Ray more.")
        self.fewest = min((job.cores for job in jobs), default=1)
        self.remote = _tasks()
        self.pending = deque(jobs)
        self.running: dict[Any, _Running] = {}
        self.expired: dict[str, float] = {}
        self.lost: Counter[str] = Counter()
        self.told: set[tuple[int, float, float | None]] = set()
        self.dead = self.nodes.dead
        self.look_at = time.monotonic() + LOOK_SECONDS

    def outcomes(self) -> Iterator[Outcome]:
        import ray

        while self.pending or self.running:
            self.submit()
            ready, _ = ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                if outcome := self.collect(reference):
                    yield outcome
            self.expire()
            if time.monotonic() >= self.look_at:
                yield from self.look_at_nodes()

    def cancel(self) -> None:
        """End all that runs."""
        for reference in self.running:
            _cancel(reference)

    def submit(self) -> None:
        """Hand over jobs until Ray has enough of them."""
        # what fits into the cores and a few more; nodes join and are lost, so this changes
        limit = max(2, int(self.nodes.cores) // self.fewest + 2)
        while self.pending and len(self.running) < limit:
            job = self.pending.popleft()
            needs = {} if job.memory_gb is None else {"memory": int(job.memory_gb * 1e9)}
            clock = _Clock(job_folder(self.out, job.id) / RUNNING)
            clock.remove()  # of an attempt that was lost
            kind = self.remote[job.gpus > 0]
            task = kind.options(num_cpus=job.cores, num_gpus=job.gpus, name=job.id, **needs)
            self.running[task.remote(self.run, job, self.out, capture=True)] = _Running(job, clock)

    def collect(self, reference: Any) -> Outcome | None:
        """The outcome of a task that is over. One that left none begins again (None), or gets its `error.json`."""
        import ray

        job, clock = self.running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
            return outcome
        except ray.exceptions.RayTaskError as e:
            # `attempt` itself failed: the disk is full, or the job function cannot be imported in the worker.
            trace = re.sub(r"\x1b\[[0-9;]*m", "", str(e)).strip()  # Ray colours it for a terminal
            message, again = trace.splitlines()[-1], False
        except ray.exceptions.RayError as e:
            said = str(e).strip()
            message = f"the worker died: {said.splitlines()[0] if said else type(e).__name__}"
            trace, again = f"{type(e).__name__}: {e}", True
        clock.remove()
        words = log_tail(self.out, job.id)
        if job.id in self.expired:
            return time_limit_error(job, self.out, self.expired[job.id], words)
        if again and self.begins_again(job):
            say(f"evaluate: {job.id} begins again, {message}")
            return None
        return write_error(
            job, self.out, clock.seconds(), message, f"{trace}\n{words}".strip() + f"\n{message}"
        )

    def begins_again(self, job: Job) -> bool:
        """Whether a job that lost its worker or host is to be handed over once more."""
        self.lost[job.id] += 1
        again = self.lost[job.id] <= self.settings.max_retries
        if again:
            self.pending.append(job)  # behind the others: what had not enough memory may have more then
        return again

    def expire(self) -> None:
        """End the jobs that are over their time limit; each is collected like one whose worker died."""
        for reference, (job, clock) in self.running.items():
            seconds = clock.seconds()
            if job.time_limit_seconds and seconds > job.time_limit_seconds and job.id not in self.expired:
                self.expired[job.id] = seconds
                _cancel(reference)

    def look_at_nodes(self) -> Iterator[Outcome]:
        """Act on what became of the nodes. Yields the jobs that are given up."""
        # a loss counts when it was seen a look ago: by now all of Ray has heard of it and sends nothing there
        self.look_at, before, self.nodes = time.monotonic() + LOOK_SECONDS, self.nodes, Nodes()
        self.tell_what_waits()
        if not before.dead <= self.dead:
            self.dead = before.dead
            self.begin_waiting_again()
        yield from self.leave(before.lost)

    def tell_what_waits(self) -> None:
        """Name the first job that waits for a node larger than any there is."""
        for job, clock in self.running.values():
            asked = job.cores, job.gpus, job.memory_gb
            if not clock.host and asked not in self.told and (why := self.nodes.too_small(job)):
                self.told.add(asked)
                say(f"evaluate: {why}: it waits for a larger one, and so do jobs like it.")

    def begin_waiting_again(self) -> None:
        """What waits for a worker may wait for one of a dead node."""
        # Ray asks for workers for all tasks of a kind together, and for no more than tasks wait; made anew, the same
        # function is another kind.
        self.remote = _tasks()
        for reference, (job, _) in [(r, it) for r, it in self.running.items() if not it.clock.host]:
            _cancel(reference)
            del self.running[reference]
            self.pending.appendleft(job)

    def leave(self, lost: set[str]) -> Iterator[Outcome]:
        """What ran on the hosts `lost` begins again elsewhere. Yields those that did so too often."""
        for reference, (job, clock) in [(r, it) for r, it in self.running.items() if it.clock.host in lost]:
            _cancel(reference)  # nobody is there to be asked
            del self.running[reference]
            self.expired.pop(job.id, None)  # should it begin again, its time does too
            if self.begins_again(job):
                say(f"host {clock.host} is lost: {job.id} begins again elsewhere")
            else:
                clock.remove()
                before = counted(self.settings.max_retries, "time")
                message = (
                    f"lost with its host {clock.host}, and {before} before with another host or a worker"
                )
                yield write_error(job, self.out, clock.seconds(), message, message)


def _tasks() -> list[Any]:
    """`attempt` as a task without, and with a GPU. With one a worker ends after it: CUDA would stay on the GPU that
    it saw first and keep memory there. (Ray sees to that where it is told of GPUs here, and not in `options`.)"""
    import ray

    return [ray.remote(max_retries=0, max_calls=n)(attempt) for n in (0, 1)]


def _cancel(reference: Any) -> None:
    """Kills the worker."""
    import ray

    ray.cancel(reference, force=True)


class _Clock:
    """Seconds since a job began to run, as opposed to being queued: it begins when the worker says so.

    host: where it runs, as it says itself; empty until then.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.mark, self.since, self.host = file, 0, 0.0, ""

    def seconds(self) -> float:
        try:
            mark = self.file.stat().st_mtime_ns
        except FileNotFoundError:
            mark = self.mark
        if mark != self.mark:
            self.mark, self.since = mark, time.monotonic()
            with contextlib.suppress(GlomoError):  # over just now
                self.host = read_json(self.file)["host"]
        return time.monotonic() - self.since if self.mark else 0.0

    def remove(self) -> None:
        """The file of a worker that cannot do so itself any more."""
        with writing(self.file):
            self.file.unlink(missing_ok=True)
