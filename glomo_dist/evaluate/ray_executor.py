"""Jobs on the Ray that `ray_start.py` has started or found: handed over, watched, taken as soon as they are done.

Ray's `max_retries` covers workers that die (killed, out of memory, a crash in compiled code), not exceptions:
those are the result of a job. Only paths and small dataclasses go through Ray; data and results are files, so
on a cluster the output folder and the inputs must be on storage that every node sees under the same path.
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
        with running_ray(self.cores, self.address, self.max_retries) as left_at_the_end:
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
    expired: id -> seconds of the jobs over their time limit.  moves: id -> how often the job lost its host.
    told: what a job is known to wait for that no node has.  fewest: cores that a job asks for.
    remote: `attempt` as a task of Ray, without and with a GPU.
    nodes: at the last look.  dead: ids of the nodes that no job waits for any more.  look_at: when the next look is.
    """

    def __init__(self, run: Run, jobs: Sequence[Job], out: Path, settings: RayExecutor) -> None:
        """Raises ConfigError if a job asks for more than a local Ray has."""
        self.run, self.out, self.settings = run, out, settings
        self.nodes = _Nodes()
        for job in jobs if settings.address is None else ():
            if why := self.nodes.too_small(job):
                raise ConfigError(f"{why}. Lower what the job asks for, or give Ray more.")
        self.fewest = min((job.cores for job in jobs), default=1)
        self.remote = _tasks(settings.max_retries)
        self.pending = deque(jobs)
        self.running: dict[Any, _Running] = {}
        self.expired: dict[str, float] = {}
        self.moves: Counter[str] = Counter()
        self.told: set[tuple[int, float, float | None]] = set()
        self.dead = self.nodes.dead
        self.look_at = time.monotonic() + LOOK_SECONDS

    def outcomes(self) -> Iterator[Outcome]:
        import ray

        while self.pending or self.running:
            self.submit()
            ready, _ = ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                yield self.collect(reference)
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

    def collect(self, reference: Any) -> Outcome:
        """The outcome of a task that is over. One that left no outcome gets its `error.json` here."""
        import ray

        job, clock = self.running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
            return outcome
        except ray.exceptions.RayTaskError as e:
            # `attempt` itself failed: the disk is full, or the job function cannot be imported in the worker.
            trace = re.sub(r"\x1b\[[0-9;]*m", "", str(e)).strip()  # Ray colours it for a terminal
            message = trace.splitlines()[-1]
        except ray.exceptions.RayError as e:
            said = str(e).strip()
            message = f"the worker died: {said.splitlines()[0] if said else type(e).__name__}"
            trace = f"{type(e).__name__}: {e}"
        clock.remove()
        words = log_tail(self.out, job.id)
        if job.id in self.expired:
            return time_limit_error(job, self.out, self.expired[job.id], words)
        return write_error(
            job, self.out, clock.seconds(), message, f"{trace}\n{words}".strip() + f"\n{message}"
        )

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
        self.look_at, before, self.nodes = time.monotonic() + LOOK_SECONDS, self.nodes, _Nodes()
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
        self.remote = _tasks(self.settings.max_retries)
        for reference, (job, _) in [(r, it) for r, it in self.running.items() if not it.clock.host]:
            _cancel(reference)
            del self.running[reference]
            self.pending.appendleft(job)

    def leave(self, lost: set[str]) -> Iterator[Outcome]:
        """What ran on the hosts `lost` begins again elsewhere. Yields those that did so too often."""
        retries = self.settings.max_retries
        for reference, (job, clock) in [(r, it) for r, it in self.running.items() if it.clock.host in lost]:
            # nobody is there to be asked; Ray shall not try it again by itself
            _cancel(reference)
            del self.running[reference]
            self.expired.pop(job.id, None)  # should it begin again, its time does too
            self.moves[job.id] += 1
            if self.moves[job.id] <= retries:
                say(f"host {clock.host} is lost: {job.id} begins again elsewhere")
                self.pending.appendleft(job)
            else:
                clock.remove()
                message = (
                    f"lost with its host {clock.host}, and {counted(retries, 'time')} before with another"
                )
                yield write_error(job, self.out, clock.seconds(), message, message)


def _tasks(retries: int) -> list[Any]:
    """`attempt` as a task without, and with a GPU. With one a worker ends after it: CUDA would stay on the GPU that
    it saw first and keep memory there. (Ray sees to that where it is told of GPUs here, and not in `options`.)"""
    import ray

    return [ray.remote(max_retries=retries, retry_exceptions=False, max_calls=n)(attempt) for n in (0, 1)]


def _cancel(reference: Any) -> None:
    """Kills the worker; a cancelled task is not retried."""
    import ray

    ray.cancel(reference, force=True)


class _Nodes:
    """The nodes of the cluster as Ray knows them now.

    cores: of all together.
    dead: ids of the nodes that Ray has given up; it does so after about a minute of silence. What waits for a job or
        a worker there would wait on, for two minutes if it was sent when nobody was there, otherwise for seven: Ray
        looks whether a connection still stands once in five minutes. (More often is not allowed: the other side takes
        it for an attack and breaks the connection.)
    lost: names of the hosts with no other node.
    """

    def __init__(self) -> None:
        import ray

        hosts: dict[bool, set[str]] = {True: set(), False: set()}
        self.dead: set[str] = set()
        self.sizes: list[tuple[float, float, float]] = []  # cores, GPUs and bytes of each
        for node in ray.nodes():
            hosts[node["Alive"]].add(node["NodeManagerHostname"])
            if node["Alive"]:
                has = node["Resources"]
                self.sizes.append((has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)))
            else:
                self.dead.add(node["NodeID"])
        self.lost = hosts[False] - hosts[True]
        self.cores = sum(cores for cores, _, _ in self.sizes)

    def too_small(self, job: Job) -> str:
        """Why no node could take the job even if it had nothing else to do; empty if one could."""
        asks = job.cores, job.gpus, (job.memory_gb or 0) * 1e9
        if any(all(has >= n for has, n in zip(node, asks, strict=True)) for node in self.sizes):
            return ""
        cores, gpus, size = map(max, zip((0.0, 0.0, 0.0), *self.sizes, strict=True))
        asked, most = [counted(job.cores, "core")], counted(int(cores), "core")
        if job.gpus:
            asked.append(f"{job.gpus:g} GPU")
            most += f", {counted(int(gpus), 'GPU')}"
        if job.memory_gb is not None:
            asked.append(f"{job.memory_gb:g} GB of memory")
        return (
            f"job {job.id} asks for {' and '.join(asked)}, more than any node of Ray has "
            f"(there are {len(self.sizes)}, with {most} and {size / 1e9:.1f} GB at most)"
        )


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
        if mark != self.mark:  # a new attempt, after a worker died, has its own time
            self.mark, self.since = mark, time.monotonic()
            with contextlib.suppress(GlomoError):  # over just now
                self.host = read_json(self.file)["host"]
        return time.monotonic() - self.since if self.mark else 0.0

    def remove(self) -> None:
        """The file of a worker that cannot do so itself any more."""
        with writing(self.file):
            self.file.unlink(missing_ok=True)
