"""What asks an evaluation to stop: its results stay, its workers end, and Ray, which takes SIGTERM, gives it
back."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import evaluate_jobs
import pytest
from evaluate_jobs import job

from glomo_dist.evaluate import ray_executor, ray_start
from glomo_dist.evaluate.attempt import is_finished
from glomo_dist.evaluate.executor import InProcess, evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor
from glomo_dist.evaluate.ray_start import running_ray
from glomo_dist.runtime.errors import Interrupted


@contextlib.contextmanager
def handled(number, handler):
    """Whatever this process was started with: under nohup SIGHUP is ignored."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_stops_as_an_interrupt_does(tmp_path, marks, capsys, number):
    jobs = [job("double", marks), job("stop", marks, number), job("double", marks, 1)]
    evaluate(jobs[:1], evaluate_jobs.run, tmp_path / "out", InProcess())
    with handled(number, signal.SIG_DFL):
        with pytest.raises(Interrupted, match=f"stopped by {number.name}; run the same command again"):
            evaluate(jobs, evaluate_jobs.run, tmp_path / "out", InProcess())
        assert signal.getsignal(number) == signal.SIG_DFL
    assert "1 of 3 results are kept" in capsys.readouterr().err
    assert not list(tmp_path.rglob("running.json"))


def test_no_mark_stays_of_a_job_that_is_stopped_while_it_is_marked(tmp_path, marks, monkeypatch):
    replace = os.replace

    def stopped(source, target):
        replace(source, target)
        if str(target).endswith("running.json"):
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", InProcess())
    assert not list(tmp_path.rglob("running.json"))


@pytest.mark.parametrize("left", [True, False])
def test_only_a_ray_that_stays_is_asked_to_end_the_jobs(tmp_path, monkeypatch, left):
    """Ray died when a task was over just as it was cancelled; leaving it ends all tasks."""
    cancelled = []

    class Fanout:
        def __init__(self, *_):
            pass

        def outcomes(self):
            raise KeyboardInterrupt
            yield

        def cancel(self):
            cancelled.append(self)

    monkeypatch.setattr(ray_executor, "running_ray", lambda *_: contextlib.nullcontext(left))
    monkeypatch.setattr(ray_executor, "_Fanout", Fanout)
    with pytest.raises(KeyboardInterrupt):
        list(RayExecutor().outcomes(evaluate_jobs.run, [], tmp_path))
    assert len(cancelled) == (not left)


def test_an_ignored_signal_stays_ignored(tmp_path, marks):
    with handled(signal.SIGHUP, signal.SIG_IGN):
        jobs = [job("stop", marks, signal.SIGHUP)]
        assert evaluate(jobs, evaluate_jobs.run, tmp_path / "out", InProcess()).finished == 1
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_because_the_terminal_is_gone(tmp_path, marks, monkeypatch):
    def gone(message):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("glomo_dist.evaluate.executor.say", gone)
    jobs = [job("stop", marks, signal.SIGHUP)]
    with handled(signal.SIGHUP, signal.SIG_DFL), pytest.raises(Interrupted, match="stopped by SIGHUP"):
        evaluate(jobs, evaluate_jobs.run, tmp_path / "out", InProcess())


@pytest.fixture
def stand_in(monkeypatch):
    """A Ray that takes SIGTERM for itself as the real one does, and nothing else."""
    ray = types.ModuleType("ray")
    ray.is_initialized = lambda: False
    ray.init = lambda **_: signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    ray.shutdown = lambda: None
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_ray_leaves_the_signal_as_it_was(stand_in, handler):
    with handled(signal.SIGTERM, handler), running_ray(cores=1):
        assert signal.getsignal(signal.SIGTERM) == handler


def test_a_signal_that_ray_drops_while_it_starts(tmp_path, marks, stand_in, monkeypatch):
    """Python drops what a handler raises in a `__del__`, and the evaluation went on."""
    taken = stand_in.init

    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    def init(**options):
        taken()
        Dropping()

    stand_in.init = init
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with handled(signal.SIGTERM, signal.SIG_DFL), pytest.raises(Interrupted, match="stopped by SIGTERM"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", RayExecutor(cores=1))
    assert not marks.exists() or not list(marks.iterdir())


def test_a_signal_that_is_dropped_while_ray_is_imported(tmp_path, marks, monkeypatch):
    """As in a callback of Python's own import: the run went on, and took no further signal."""
    dropping = "import os, signal\nclass D:\n    def __del__(self): os.kill(os.getpid(), signal.SIGUSR1)\nD()"
    (tmp_path / "ray.py").write_text(f"{dropping}\ndef is_initialized(): raise AssertionError('gone on')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with handled(signal.SIGUSR1, signal.SIG_DFL), pytest.raises(Interrupted, match="stopped by SIGUSR1"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", RayExecutor(cores=1))


def test_a_signal_that_is_handled_behind_a_long_call(tmp_path, marks, stand_in, monkeypatch):
    """Ray waits in compiled code, and Python calls Ray's handler when that is over: it ended with code 15."""
    set_wakeup_fd, calls = signal.set_wakeup_fd, []

    def handles(number):
        calls.append(number)
        if len(calls) == 2:
            sys.exit(signal.SIGTERM)
        return set_wakeup_fd(number)

    monkeypatch.setattr("signal.set_wakeup_fd", handles)
    with handled(signal.SIGTERM, signal.SIG_DFL), pytest.raises(Interrupted, match="stopped by SIGTERM"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", RayExecutor(cores=1))


def test_only_a_ray_of_ones_own_tells_nothing_of_its_tasks(stand_in, monkeypatch):
    """Or it waits for processes that a signal to the whole group has ended; a cluster's dashboard shows them."""
    monkeypatch.setattr(ray_start, "_require_listening", lambda _: None)
    ((name, value),) = ray_start.WITHOUT_TASK_EVENTS.items()
    monkeypatch.delenv(name, raising=False)
    with running_ray(cores=1):
        assert os.environ[name] == value
    with running_ray(address="host:6379"):
        assert name not in os.environ


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_does_not_break_into_the_shutdown(tmp_path, marks, stand_in, first):
    taken, done = stand_in.init, []

    def init(**options):
        taken()
        os.kill(os.getpid(), first)

    def shutdown():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("shutdown")

    stand_in.init, stand_in.shutdown = init, shutdown
    with handled(first, signal.SIG_DFL), pytest.raises(Interrupted, match=f"stopped by {first.name}"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", RayExecutor(cores=1))
    assert done == ["shutdown"]


PROGRAM = """
import sys
from pathlib import Path
from evaluate_jobs import Work, run
from glomo_dist.evaluate.attempt import Job
from glomo_dist.evaluate.executor import evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor
marks, out = sys.argv[1:]
jobs = [Job("double-1", Work("double", marks, 1))]
jobs += [Job(f"hang-{value}", Work("hang", marks, value)) for value in range(2)]
evaluate(jobs, run, out, RayExecutor(cores=2))
"""


@pytest.mark.parametrize(
    ("send", "number", "error"),
    [
        (os.killpg, signal.SIGINT, "KeyboardInterrupt"),
        (os.kill, signal.SIGTERM, "Interrupted: stopped by SIG"),
        (os.killpg, signal.SIGTERM, "Interrupted: stopped by SIG"),
    ],
)
def test_interrupt_keeps_results_and_leaves_nothing_running(tmp_path, marks, send, number, error):
    """From another folder, with its own Ray: Ctrl-C (to all, by a terminal) and SIGTERM (which Ray takes for itself;
    to all, by `timeout`, Ray's processes too) end the workers, and a rerun skips what was finished."""
    out = tmp_path / "out"
    roots = [str(Path(evaluate_jobs.__file__).parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    with open(tmp_path / "stderr", "w") as stderr, contextlib.ExitStack() as at_the_end:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(marks), str(out)],
            cwd=tmp_path,
            env=environment,
            stderr=stderr,
            start_new_session=True,
        )
        at_the_end.callback(process.kill)
        deadline = time.monotonic() + 300
        while not (is_finished(out, "double-1") and len(list(out.rglob("running.json"))) == 2):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "stderr").read_text()
            time.sleep(0.1)
        workers = [json.loads(path.read_text())["pid"] for path in out.rglob("running.json")]
        send(process.pid, number)
        process.wait(timeout=120)
    said = (tmp_path / "stderr").read_text()
    assert "1 of 3 results are kept" in said and error in said.splitlines()[-1]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, f"workers {workers} still run"
        time.sleep(0.1)
    summary = evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess())
    assert summary.finished_before == 1
