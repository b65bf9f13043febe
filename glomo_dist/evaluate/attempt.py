"""One job from start to `result.json` or `error.json`: the same code in this process and in a worker.

A job's folder is OUT/results/<id>/. `result.json` is there when the job is finished, and is what the job function
returned. Beside it: `job.json` (what was asked for, and on what machine it ran), `error.json` (the last failure),
`running.json` (who works on it since when) and `log.txt` (what a worker printed). Others take these names from here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from glomo_dist.runtime.config import MOST_THREADS, check_least
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError
from glomo_dist.runtime.files import remove_leftovers, write_bytes, writing
from glomo_dist.runtime.fingerprint import code_version
from glomo_dist.runtime.json_files import json_bytes, read_json, write_json
from glomo_dist.runtime.processes import usable_cores
from glomo_dist.runtime.secrets import shown, shown_in

JOB_FORMAT, ERROR_FORMAT, VERSION = "glomo-job", "glomo-error", 1
RESULT, JOB, ERROR, RUNNING, LOG = "result.json", "job.json", "error.json", "running.json", "log.txt"
_RESULTS = "results"
LAST_WORDS, LAST_LINES = 1 << 16, 30  # bytes, and lines of these
MOST = 1e9  # gigabytes or seconds (30 years) of a job; what counts them in smaller units takes no infinity


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece of work with a name and the resources it asks for.

    id: stable name of the work, also its folder; the same work has the same id in every run.
    work: a frozen dataclass, handed to the job function; small and picklable (paths, never tensors).
    cores: that the job occupies, and threads it may start.
    gpus: that it occupies: 0, one, or the share of one that several jobs have at a time.
    memory_gb: 10^9 bytes that must be free where it is started (on Ray; it may take more); None: not looked at.
    time_limit_seconds: a job running longer than this fails; None: no limit.
    """

    id: str
    work: Any
    cores: int = 1
    gpus: float = 0
    memory_gb: float | None = None
    time_limit_seconds: float | None = None

    def __post_init__(self) -> None:
        check_least(self, f"job {self.id}: ", 1, "cores", most=MOST_THREADS)
        if not 0 <= self.gpus <= 1:
            raise ConfigError(
                f"job {self.id}: gpus must be in [0, 1]: a job computes on one at most, got {self.gpus}."
            )
        for name in ("memory_gb", "time_limit_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MOST:
                raise ConfigError(
                    f"job {self.id}: {name} must be positive, {MOST:g} at most, or none, got {value}."
                )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended. error: what it raised, in one line; None if it finished."""

    id: str
    seconds: float
    error: str | None = None


Run = Callable[[Any], Any]  # Job.work -> result (a dataclass or a dictionary, JSON-able)


def job_folder(out: str | Path, id: str) -> Path:
    """Where all files of the job are, in the evaluation's output folder `out`."""
    return Path(out) / _RESULTS / id


def result_files(out: Path) -> Iterator[Path]:
    """The `result.json` of all jobs under `out`, of whatever plan."""
    return out.glob(f"{_RESULTS}/*/{RESULT}")


def remove_stale(out: Path) -> None:
    """What a killed program left that is true no more: that it works on a job, or the failure before a result."""
    for folder in out.glob(f"{_RESULTS}/*"):
        (folder / RUNNING).unlink(missing_ok=True)
        if (folder / RESULT).exists():
            (folder / ERROR).unlink(missing_ok=True)


def read_object(path: Path) -> object:
    """The JSON object in a result's file; DataError for anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, got {type(value).__name__}.")
    return value


def is_finished(out: str | Path, id: str, read: Callable[[Path], object] = read_object) -> bool:
    """Whether the job has a whole result; a damaged one counts as none, so that the job runs again.

    read: raises GlomoError for a file that is none.
    """
    path = job_folder(out, id) / RESULT
    if not path.exists():
        return False
    try:
        read(path)
    except GlomoError:
        return False
    return True


def attempt(run: Run, job: Job, out: str | Path, *, capture: bool = False) -> Outcome:
    """Run one job with the threads it asked for and write what came of it.

    capture: send everything the job prints to its `log.txt` (workers; in process it stays on the terminal).
    An exception of the job, sys.exit() too, is its result and not an error of the fan-out, so it is written down, not
    raised; KeyboardInterrupt and the like pass through.
    """
    folder = job_folder(out, job.id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        started, began = time.time(), time.monotonic()
        try:
            write_json(
                folder / RUNNING, {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
            )
            with _captured(folder / LOG) if capture else contextlib.nullcontext(), _threads(job.cores):
                try:
                    result = json_bytes(_result(run(job.work)))
                except (Exception, SystemExit) as e:
                    trace = shown(_printable(traceback.format_exc()))
                    if capture:
                        print(trace, file=sys.stderr)
                    return write_error(job, out, time.monotonic() - began, _in_one_line(e), trace)
            seconds = time.monotonic() - began
            record = {"format": JOB_FORMAT, "version": VERSION, **_record(job)}
            write_json(folder / JOB, {**record, "started": started, "seconds": seconds})
            write_bytes(folder / RESULT, result)  # last: with it the job counts as finished
            (folder / ERROR).unlink(missing_ok=True)
            return Outcome(job.id, seconds)
        finally:
            (folder / RUNNING).unlink(missing_ok=True)


def write_error(job: Job, out: str | Path, seconds: float, message: str, trace: str) -> Outcome:
    """Write `error.json` of a job that raised, hung or died. message: one line for the table.

    A job whose result is there had just finished when it was given up, and counts as finished.
    """
    folder = job_folder(out, job.id)
    with writing(folder):
        if (folder / RESULT).exists():
            (folder / ERROR).unlink(missing_ok=True)
            return Outcome(job.id, seconds)
    write_json(
        folder / ERROR,
        {
            "format": ERROR_FORMAT,
            "version": VERSION,
            **_record(job),
            "error": message,
            "traceback": trace,
            "seconds": seconds,
        },
    )
    return Outcome(job.id, seconds, message)


def log_tail(out: str | Path, id: str) -> str:
    """The last lines of a worker, for a job that can no longer say anything itself."""
    path = job_folder(out, id) / LOG
    if not path.exists():
        return ""
    with path.open("rb") as f:  # however much it printed
        f.seek(max(path.stat().st_size - LAST_WORDS, 0))
        text = f.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-LAST_LINES:])


def _computed_on(gpu: bool) -> dict[str, Any]:
    """The machine, as far as it may matter to a number.  gpu: whether the job had one; others in this process may."""
    return {
        "host": socket.gethostname(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if gpu and torch.cuda.is_initialized() else None,
        "cores": usable_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _record(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "job": shown_in(_plain(job.work)),
        "cores": job.cores,
        "gpus": job.gpus,
        "memory_gb": job.memory_gb,
        "code": code_version(),
        "machine": _computed_on(job.gpus > 0),
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _result(value: Any) -> dict[Any, Any]:
    """What `run` returned, for its file; TypeError for what `read_object` would not take back."""
    result = _plain(value)
    if not isinstance(result, dict):
        raise TypeError(f"the job function must return a dataclass or a dictionary, got {value!r:.80}.")
    return result


def _in_one_line(error: BaseException) -> str:
    """As at the end of a traceback, without its notes; of our own errors the message is enough."""
    if isinstance(error, GlomoError):
        return _printable(" ".join(str(error).split()))
    summary = traceback.TracebackException(type(error), error, None)
    summary.__notes__ = None
    return shown(_printable(" ".join([*summary.format_exception_only()][-1].split())))


def _printable(text: str) -> str:
    """Without surrogates, as in the name of a file that is not UTF-8: a worker's streams refuse them."""
    return text.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Limit torch, OpenMP and BLAS to `count` threads; the same job is then as fast alone as among others."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(limits=count):
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _captured(path: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to `path`, so that a crash in compiled code leaves its words too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    had_handler = faulthandler.is_enabled()
    with open(path, "wb") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
        faulthandler.enable(file=2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            if not had_handler:
                faulthandler.disable()
            for number, descriptor in zip((1, 2), saved, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
