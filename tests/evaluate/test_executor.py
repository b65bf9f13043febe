"""Both executors keep the same promises; one real local Ray is shared by all tests of this file."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import evaluate_jobs
import pytest
import torch
from cluster_faults import GOOD, good_jobs
from evaluate_jobs import Work, starts

from glomo_dist.evaluate.attempt import Job, is_finished, job_folder
from glomo_dist.evaluate.executor import InProcess, evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor, running_ray
from glomo_dist.runtime.errors import ConfigError, DataError, GlomoError
from glomo_dist.runtime.files import read_json


@pytest.fixture(scope="module")
def local_ray():
    with running_ray(cpus=2):
        yield RayExecutor(max_retries=1)


@pytest.fixture(params=["in process", "ray"])
def executor(request):
    return InProcess() if request.param == "in process" else request.getfixturevalue("local_ray")


def job(kind: str, folder: Path, value: int = 0, **options) -> Job:
    return Job(f"{kind}-{value}", Work(kind, str(folder), value), **options)


@pytest.fixture
def marks(tmp_path):
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def read(out: Path, id: str, name: str = "result") -> dict:
    return json.loads((job_folder(out, id) / f"{name}.json").read_text())


def test_results_and_a_raising_job(executor, tmp_path, marks):
    out = tmp_path / "out"
    jobs = [job("double", marks, value) for value in range(3)] + [job("raise", marks, 5)]
    summary = evaluate(jobs, evaluate_jobs.run, out, executor, plan={"seeds": [0, 1, 2]})

    assert (summary.jobs, summary.finished, summary.finished_before) == (4, 3, 0)
    assert [failed.id for failed in summary.failed] == ["raise-5"]
    assert [read(out, f"double-{value}")["double"] for value in range(3)] == [0, 2, 4]
    record = read(out, "double-1", "job")
    assert record["job"] == {"kind": "double", "folder": str(marks), "value": 1}
    assert record["seconds"] >= 0 and record["code"] and record["machine"]["cores"] >= 1
    error = read(out, "raise-5", "error")
    assert error["error"] == "ValueError: a job with value 5 cannot work"
    assert "in run" in error["traceback"] and error["job"]["value"] == 5
    assert not (job_folder(out, "raise-5") / "result.json").exists()
    assert not list(out.rglob("running.json"))
    plan = json.loads((out / "plan.json").read_text())
    assert plan["plan"] == {"seeds": [0, 1, 2]}
    assert [entry["id"] for entry in plan["jobs"]] == [j.id for j in jobs]


def test_rerun_skips_finished_and_retries_failed_and_damaged(executor, tmp_path, marks):
    out = tmp_path / "out"
    jobs = [job("double", marks, 1), job("double", marks, 2), job("raise", marks)]
    evaluate(jobs, evaluate_jobs.run, out, executor)
    (job_folder(out, "double-2") / "result.json").write_text('{"format": "glomo-res')
    summary = evaluate(jobs, evaluate_jobs.run, out, executor)

    assert (summary.finished_before, summary.finished, len(summary.failed)) == (1, 1, 1)
    assert [starts(marks, "double", 1), starts(marks, "double", 2), starts(marks, "raise")] == [1, 2, 2]
    assert read(out, "double-2")["double"] == 4


def test_a_result_that_is_none_runs_again_and_does_not_stay(tmp_path, marks):
    """Valid JSON, but not what the job function returns."""

    def whole(path):
        if "double" not in read_json(path):
            raise DataError(f"{path}: no result")

    out = tmp_path / "out"
    evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess())
    result = job_folder(out, "double-1") / "result.json"
    result.write_text("{}")
    failing = Job("double-1", Work("raise", str(marks)))
    assert evaluate([failing], evaluate_jobs.run, out, InProcess(), read=whole).failed
    assert not result.exists(), "the failure is what counts"
    assert result.with_name("result.json.unreadable").read_text() == "{}"
    assert evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess(), read=whole).finished == 1
    assert (
        evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess(), read=whole).finished_before
        == 1
    )


def test_success_removes_the_old_error(tmp_path, marks):
    out = tmp_path / "out"
    evaluate([job("raise", marks)], evaluate_jobs.run, out, InProcess())
    assert (job_folder(out, "raise-0") / "error.json").exists()
    mended = Job("raise-0", Work("double", str(marks), 4))
    evaluate([mended], evaluate_jobs.run, out, InProcess())
    assert is_finished(out, "raise-0") and not (job_folder(out, "raise-0") / "error.json").exists()


def test_time_limit_ends_a_hanging_job_and_the_rest_goes_on(executor, tmp_path, marks):
    out = tmp_path / "out"
    hanging = job("hang", marks, time_limit_seconds=1.0)
    summary = evaluate([hanging, job("double", marks, 3)], evaluate_jobs.run, out, executor)

    assert summary.finished == 1 and len(summary.failed) == 1
    assert "time limit" in summary.failed[0].error and "1 s" in summary.failed[0].error
    assert "time limit" in read(out, "hang-0", "error")["traceback"]
    assert starts(marks, "hang") == 1, "a job over its limit must not be retried"
    assert not list(out.rglob("running.json"))


def test_threads_are_those_the_job_asked_for(executor, tmp_path, marks):
    before = torch.get_num_threads()
    evaluate(
        [job("double", marks, 1), job("double", marks, 2, cpus=2)],
        evaluate_jobs.run,
        tmp_path / "out",
        executor,
    )
    assert read(tmp_path / "out", "double-1")["threads"] == 1
    assert read(tmp_path / "out", "double-2")["threads"] == 2
    assert torch.get_num_threads() == before


def test_ray_retries_a_dead_worker_and_reports_one_that_always_dies(local_ray, tmp_path, marks):
    out = tmp_path / "out"
    jobs = [job("dies_once", marks, 7), job("always_dies", marks), job("double", marks, 1)]
    summary = evaluate(jobs, evaluate_jobs.run, out, local_ray)

    assert summary.finished == 2 and [failed.id for failed in summary.failed] == ["always_dies-0"]
    assert starts(marks, "dies_once", 7) == 2 and read(out, "dies_once-7")["double"] == 14
    assert starts(marks, "always_dies") == 1 + local_ray.max_retries
    error = read(out, "always_dies-0", "error")
    assert "worker died" in error["error"] and "last words" in error["traceback"]


def test_ray_works_in_other_processes(local_ray, tmp_path, marks):
    evaluate([job("double", marks, 1)], evaluate_jobs.run, tmp_path / "out", local_ray)
    assert read(tmp_path / "out", "double-1")["pid"] != os.getpid()


def test_ray_refuses_a_job_that_never_fits(local_ray, tmp_path, marks):
    with pytest.raises(ConfigError, match="double-1 asks for 64 cores, Ray has 2"):
        evaluate([job("double", marks, 1, cpus=64)], evaluate_jobs.run, tmp_path / "out", local_ray)
    with pytest.raises(ConfigError, match=r"double-1 asks for 1e\+06 GB of memory, Ray has"):
        evaluate([job("double", marks, 1, memory_gb=1e6)], evaluate_jobs.run, tmp_path / "out", local_ray)
    evaluate([job("double", marks, 1, memory_gb=0.1)], evaluate_jobs.run, tmp_path / "out", local_ray)
    assert read(tmp_path / "out", "double-1", "job")["memory_gb"] == 0.1


@pytest.mark.parametrize(("asked", "at_once"), [(3, 3), (None, 4)])  # None: two cores and two more jobs
def test_ray_is_handed_a_bounded_number_of_jobs(local_ray, tmp_path, marks, monkeypatch, asked, at_once):
    import ray

    handed, wait = [], ray.wait
    monkeypatch.setattr(ray, "wait", lambda refs, **more: handed.append(len(refs)) or wait(refs, **more))
    jobs = [job("double", marks, value) for value in range(9)]
    summary = evaluate(
        jobs, evaluate_jobs.run, tmp_path / "out", dataclasses.replace(local_ray, max_pending=asked)
    )
    assert summary.finished == 9
    assert max(handed) == handed[0] == at_once


def test_no_cluster_at_the_address(tmp_path, marks):
    program = "import sys; from test_executor import *; address_without_cluster(*map(Path, sys.argv[1:]))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    # in a fresh process: this one may already have a Ray, which would be used
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out"), str(marks)], env=environment, check=True
    )


def address_without_cluster(out: Path, marks: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(GlomoError, match=rf"no Ray cluster at '127.0.0.1:{port}'.*ray start --head"):
        evaluate([job("double", marks)], evaluate_jobs.run, out, RayExecutor(address=f"127.0.0.1:{port}"))


def test_foreign_folder_and_file_are_refused(tmp_path, marks):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("dear")
    with pytest.raises(GlomoError, match=r"full is not empty and holds no evaluation"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "full", InProcess())
    with pytest.raises(GlomoError, match=r"thesis.tex is a file"):
        evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "full" / "thesis.tex", InProcess())
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["thesis.tex"]


def test_two_programs_in_one_folder_are_refused(tmp_path, marks):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        (tmp_path / "out" / "plan.json").write_text("{}")
        with pytest.raises(GlomoError, match="another process is evaluating into"):
            evaluate([job("double", marks)], evaluate_jobs.run, tmp_path / "out", InProcess())


def test_the_same_id_twice_is_refused(tmp_path, marks):
    with pytest.raises(ConfigError, match="'double-0'"):
        evaluate(
            [job("double", marks), job("double", marks)], evaluate_jobs.run, tmp_path / "out", InProcess()
        )


@pytest.mark.slow
def test_faults_on_a_cluster_of_two_nodes(tmp_path, marks):
    """A killed worker, a killed node, a job that raises, one that hangs: the other results are complete and those of
    a clean run."""
    out, clean = tmp_path / "out", tmp_path / "clean"
    roots = [str(Path(evaluate_jobs.__file__).parent), *filter(None, sys.path)]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(roots),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,  # not the user's own
    }  # fmt: skip
    program = str(Path(evaluate_jobs.__file__).with_name("cluster_faults.py"))
    done = subprocess.run(
        [sys.executable, program, str(out), str(marks)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert set(failed) == {"raise-0", "hang-0"}
    assert "a job with value 0" in failed["raise-0"] and "time limit" in failed["hang-0"]
    jobs = good_jobs(str(marks))
    assert sum(starts(marks, "waits", value) for value in range(GOOD)) >= GOOD + 2  # two were begun again
    evaluate(jobs, evaluate_jobs.run, clean, InProcess())
    for work in jobs:
        ours, theirs = read(out, work.id), read(clean, work.id)
        assert ours.pop("pid") != theirs.pop("pid")
        assert ours == theirs
    assert not list(out.rglob("running.json"))


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
evaluate(jobs, run, out, RayExecutor(cpus=2))
"""


def test_interrupt_keeps_results_and_leaves_nothing_running(tmp_path, marks):
    """From another folder, with its own Ray: Ctrl-C ends the workers, and a rerun skips what was finished."""
    out = tmp_path / "out"
    roots = [str(Path(evaluate_jobs.__file__).parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(marks), str(out)],
            cwd=tmp_path,
            env=environment,
            stderr=stderr,
        )
        deadline = time.monotonic() + 300
        while not (is_finished(out, "double-1") and len(list(out.rglob("running.json"))) == 2):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "stderr").read_text()
            time.sleep(0.1)
        workers = [json.loads(path.read_text())["pid"] for path in out.rglob("running.json")]
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
    assert "1 of 3 results are kept" in (tmp_path / "stderr").read_text()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, f"workers {workers} still run"
        time.sleep(0.1)
    summary = evaluate([job("double", marks, 1)], evaluate_jobs.run, out, InProcess())
    assert summary.finished_before == 1
