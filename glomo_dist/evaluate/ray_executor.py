"""Jobs on Ray: a local one that lives as long as the evaluation, or a running cluster by its address.

Ray's `max_retries` covers workers that die (killed, out of memory, a crash in compiled code), not exceptions:
those are the result of a job. Only paths and small dataclasses go through Ray; data and results are files, so
on a cluster the output folder and the inputs must be on storage that every node sees under the same path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glomo_dist.evaluate.attempt import Job, Outcome, Run, attempt, job_folder, log_tail, write_error
from glomo_dist.evaluate.executor import time_limit_error
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.files import read_json
from glomo_dist.runtime.progress import say

POLL_SECONDS = 0.5  # how often time limits are looked at; results are taken as soon as they come
LOOK_SECONDS = 2.0  # how often it is asked which hosts are lost
OBJECT_STORE_BYTES = 100 << 20  # results are files; Ray's minimum is about 75 MB

# Read by Ray when it is imported or started.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


@dataclass(frozen=True)
class RayExecutor:
    """cpus: cores of the local Ray; None: all of this process. Ignored with `address`.

    address: of a running cluster ("auto", "host:6379", "ray://host:10001"); None: start a local Ray and stop
        it at the end. An already running one in this process (`ray.init` by the caller) is used as it is.
    max_retries: how often a job whose worker died is started again.
    max_pending: jobs handed to Ray at a time; None: what fits into its cores, and a few more.
    """

    cpus: int | None = None
    address: str | None = None
    max_retries: int = 2
    max_pending: int | None = None

    def outcomes(self, run: Run, jobs: Sequence[Job], out: Path) -> Iterator[Outcome]:
        """See `Executor`. Raises ConfigError if a job asks for more cores than a local Ray has."""
        with running_ray(self.cpus, self.address, self.max_retries):
            yield from _outcomes(run, jobs, out, self)


@contextlib.contextmanager
def running_ray(cpus: int | None = None, address: str | None = None, max_retries: int = 2) -> Iterator[None]:
    """Ray for the duration of the block, unless this process already has one."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    if address is not None and _knows_a_token():
        os.environ.setdefault(
            "RAY_AUTH_MODE", "token"
        )  # `ray start --head` does so by itself, `init` does not
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None:
        try:
            _require_listening(address)
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as e:
            raise GlomoError(
                f"no Ray cluster at {address!r}: {e}. Start one (`ray start --head`) or leave the address out."
            ) from e
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray's sockets lie below this folder and their paths must stay under 107 bytes: not in the output folder.
    folder = tempfile.mkdtemp(prefix="glomo-ray-")
    with _environment(
        PYTHONPATH=os.pathsep.join(_import_paths()),
        RAY_task_oom_retries=str(max_retries),
    ):
        ray.init(
            address="local",  # never a cluster that happens to run on this machine
            num_cpus=cpus or _own_cores(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
            _temp_dir=folder,
        )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _outcomes(run: Run, jobs: Sequence[Job], out: Path, settings: RayExecutor) -> Iterator[Outcome]:
    import ray

    cores = ray.cluster_resources().get("CPU", 0)
    memory = ray.cluster_resources().get("memory", 0) / 1e9
    for job in jobs if settings.address is None else ():
        if job.cpus > cores:
            raise ConfigError(
                f"job {job.id} asks for {job.cpus} cores, Ray has {cores:g}. "
                f"Lower the job's cpus or give Ray more cores."
            )
        if job.memory_gb is not None and job.memory_gb > memory:
            raise ConfigError(
                f"job {job.id} asks for {job.memory_gb:g} GB of memory, Ray has {memory:.1f}. Lower its memory_gb."
            )
    limit = settings.max_pending or max(2, int(cores) // min((job.cpus for job in jobs), default=1) + 2)
    remote = ray.remote(max_retries=settings.max_retries, retry_exceptions=False)(attempt)
    pending = deque(jobs)
    running: dict[Any, Job] = {}
    clocks: dict[str, _Clock] = {}
    expired: dict[str, float] = {}
    moves: Counter[str] = Counter()
    look_at = time.monotonic() + LOOK_SECONDS
    try:
        while pending or running:
            while pending and len(running) < limit:
                job = pending.popleft()
                needs = {} if job.memory_gb is None else {"memory": int(job.memory_gb * 1e9)}
                task = remote.options(num_cpus=job.cpus, name=job.id, **needs)
                reference = task.remote(run, job, out, capture=True)
                running[reference] = job
                clocks[job.id] = _Clock(job_folder(out, job.id) / "running.json")
            ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
            for reference in ready:
                job = running.pop(reference)
                yield _collect(reference, job, out, clocks.pop(job.id), expired)
            for reference, job in running.items():
                seconds = clocks[job.id].seconds()
                if job.time_limit_seconds and seconds > job.time_limit_seconds and job.id not in expired:
                    expired[job.id] = seconds
                    ray.cancel(reference, force=True)  # kills the worker; a cancelled task is not retried
            if time.monotonic() < look_at:
                continue
            look_at, lost = time.monotonic() + LOOK_SECONDS, _lost_hosts()
            for reference, job in [(r, j) for r, j in running.items() if clocks[j.id].host in lost]:
                ray.cancel(
                    reference, force=True
                )  # nobody is there to be asked; Ray shall not try it again by itself
                del running[reference]
                clock = clocks.pop(job.id)
                moves[job.id] += 1
                if moves[job.id] <= settings.max_retries:
                    say(f"host {clock.host} is lost: {job.id} begins again elsewhere")
                    pending.appendleft(job)
                else:
                    clock.file.unlink(missing_ok=True)
                    message = f"lost with its host {clock.host}, and {settings.max_retries} times before with another"
                    yield write_error(job, out, clock.seconds(), message, message)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _collect(reference: Any, job: Job, out: Path, clock: _Clock, expired: dict[str, float]) -> Outcome:
    """The outcome of a task that is over. One that left no outcome gets its `error.json` here."""
    import ray

    try:
        outcome: Outcome = ray.get(reference)
        return outcome
    except ray.exceptions.RayTaskError as e:
        # `attempt` itself failed: the disk is full, or the job function cannot be imported in the worker.
        trace = re.sub(r"\x1b\[[0-9;]*m", "", str(e)).strip()  # Ray colours it for a terminal
        message = trace.splitlines()[-1]
    except ray.exceptions.RayError as e:
        message = f"the worker died: {str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__}"
        trace = f"{type(e).__name__}: {e}"
    (job_folder(out, job.id) / "running.json").unlink(missing_ok=True)
    words = log_tail(out, job.id)
    if job.id in expired:
        return time_limit_error(job, out, expired[job.id], words)
    return write_error(job, out, clock.seconds(), message, f"{trace}\n{words}".strip() + f"\n{message}")


def _lost_hosts() -> set[str]:
    """Names of the hosts that Ray has given up; it does so after about a minute of silence.

    What waits for a job there would wait on: Ray looks whether a connection still stands once in five minutes. (More
    often is not allowed: the other side takes it for an attack and breaks the connection.)
    """
    import ray

    hosts: dict[bool, set[str]] = {True: set(), False: set()}
    for node in ray.nodes():
        hosts[node["Alive"]].add(node["NodeManagerHostname"])
    return hosts[False] - hosts[True]


class _Clock:
    """Seconds since a job began to run, as opposed to being queued: it begins when the worker says so.

    host: where it runs, as it says itself; empty until then.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.mark, self.since, self.host = file, 0, 0.0, ""
        file.unlink(missing_ok=True)  # of a run that was killed

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


def _knows_a_token() -> bool:
    """Whether there is a token to show to a cluster that asks for one, in one of the places where Ray looks."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or Path.home().joinpath(".ray", "auth_token").exists()


def _require_listening(address: str) -> None:
    """Raise OSError at once where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _own_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _import_paths() -> list[str]:
    """What this process can import beyond its Python's own folders, so that workers can, from any folder."""
    own = tuple(prefix + os.sep for prefix in (sys.prefix, sys.base_prefix))
    found = [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]
    return list(dict.fromkeys(path for path in found if not path.startswith(own)))


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
