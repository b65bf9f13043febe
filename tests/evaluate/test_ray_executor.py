"""What only Ray does: workers that die, jobs that never fit, nodes that come and go."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import evaluate_jobs
import pytest
from cluster_faults import GOOD, good_jobs
from evaluate_jobs import job, read, starts

from glomo_dist.evaluate import ray_executor, ray_start
from glomo_dist.evaluate.executor import InProcess, evaluate
from glomo_dist.evaluate.ray_executor import RayExecutor
from glomo_dist.runtime.errors import ConfigError, GlomoError


def test_ray_retries_a_dead_worker_and_reports_one_that_always_dies(local_ray, tmp_path, marks):
    out = tmp_path / "out"
    jobs = [job("dies_once", marks, 7), job("always_dies", marks), job("double", marks, 1)]
    summary = evaluate(jobs, evaluate_jobs.run, out, local_ray)

    assert summary.finished == 2 and [failed.id for failed in summary.failed] == ["always_dies-0"]
    assert starts(marks, "dies_once", 7) == 2 and read(out, "dies_once-7")["double"] == 14
    assert starts(marks, "always_dies") == 1 + local_ray.max_retries
    error = read(out, "always_dies-0", "error")
    assert "worker died" in error["error"] and "last words" in error["traceback"]


def test_the_time_that_a_job_waits_for_its_next_attempt_does_not_count(local_ray, tmp_path, marks, capsys):
    """Others take the cores of a worker that died."""
    last = job("dies_late", marks, cores=2, time_limit_seconds=2.5)
    others = [job("slow", marks, value, cores=2) for value in range(3)]
    assert evaluate([last, *others], evaluate_jobs.run, tmp_path / "out", local_ray).finished == 4
    assert starts(marks, "dies_late") == 2
    assert "dies_late-0 begins again, the worker died: " in capsys.readouterr().err


def test_ray_works_in_other_processes(local_ray, tmp_path, marks):
    evaluate([job("double", marks, 1)], evaluate_jobs.run, tmp_path / "out", local_ray)
    assert read(tmp_path / "out", "double-1")["pid"] != os.getpid()


def test_ray_refuses_a_job_that_never_fits(local_ray, tmp_path, marks):
    with pytest.raises(ConfigError, match=r"double-1 asks for 64 cores, more than any node .* 2 cores and"):
        evaluate([job("double", marks, 1, cores=64)], evaluate_jobs.run, tmp_path / "out", local_ray)
    with pytest.raises(ConfigError, match=r"asks for 1 core and 1e\+06 GB of memory, more than any node"):
        evaluate([job("double", marks, 1, memory_gb=1e6)], evaluate_jobs.run, tmp_path / "out", local_ray)
    evaluate([job("double", marks, 1, memory_gb=0.1)], evaluate_jobs.run, tmp_path / "out", local_ray)
    assert read(tmp_path / "out", "double-1", "job")["memory_gb"] == 0.1


def test_ray_refuses_a_job_for_gpus_that_are_not_there(local_ray, tmp_path, marks, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [node(2)])
    expected = (
        r"asks for 1 core and 0\.5 GPU, more than any node .*\(there are 1, with 2 cores, 0 GPUs and 3\.0 GB"
    )
    with pytest.raises(ConfigError, match=expected):
        evaluate([job("double", marks, 1, gpus=0.5)], evaluate_jobs.run, tmp_path / "out", local_ray)


def test_ray_is_handed_a_bounded_number_of_jobs(local_ray, tmp_path, marks, monkeypatch):
    import ray

    handed, wait = [], ray.wait
    monkeypatch.setattr(ray, "wait", lambda refs, **more: handed.append(len(refs)) or wait(refs, **more))
    jobs = [job("double", marks, value) for value in range(9)]
    summary = evaluate(jobs, evaluate_jobs.run, tmp_path / "out", local_ray)
    assert summary.finished == 9
    assert max(handed) == handed[0] == 4  # on two cores, and two more


def node(cores: float) -> dict:
    return {"Alive": True, "NodeManagerHostname": "here", "Resources": {"CPU": cores, "memory": 3e9}}


def test_nodes_that_join_get_work(local_ray, tmp_path, marks, monkeypatch):
    import ray

    nodes, handed, wait = [node(1)], [], ray.wait

    def wait_and_join(refs, **more):
        handed.append(len(refs))
        if len(nodes) == 1:
            nodes.append(node(4))
        return wait(refs, **more)

    monkeypatch.setattr(ray, "wait", wait_and_join)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_executor, "LOOK_SECONDS", 0.0)
    jobs = [job("double", marks, value) for value in range(9)]
    assert evaluate(jobs, evaluate_jobs.run, tmp_path / "out", local_ray).finished == 9
    assert (handed[0], max(handed)) == (3, 7)


def test_a_job_that_waits_for_a_larger_node_is_named_once(local_ray, tmp_path, marks, monkeypatch, capsys):
    """Also where all nodes together have what it asks for."""
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [node(1), node(1)])
    monkeypatch.setattr(ray_executor, "LOOK_SECONDS", 0.0)
    jobs = [job("slow", marks, value, cores=2, memory_gb=0.1) for value in range(2)]
    cluster = dataclasses.replace(local_ray, address="one that is there")
    assert evaluate(jobs, evaluate_jobs.run, tmp_path / "out", cluster).finished == 2
    said = capsys.readouterr().err
    assert said.count("it waits for a larger one") == 1
    assert (
        "asks for 2 cores and 0.1 GB of memory, more than any node of Ray has (there are 2, with 1 core and"
        in said
    )


def test_no_cores_for_ray():
    with pytest.raises(ConfigError, match=r"--cores.* at least 1, got 0"):
        RayExecutor(cores=0)


def test_the_folder_for_temporary_files_may_have_a_long_path(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ray_start._folder() as folder:
        assert Path(folder).is_dir() and len(folder) < 40
    assert not Path(folder).exists()


def test_ray_that_is_not_there(tmp_path, marks):
    program = "import sys; from test_ray_executor import *; without_ray(*map(Path, sys.argv[1:]))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    # in a fresh process: this one may already have a Ray, which would be used
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out"), str(marks)], env=environment, check=True
    )


def without_ray(out: Path, marks: Path) -> None:
    address_without_cluster(out, marks)
    import ray

    started = []

    def init(**options):
        started.append(options.get("_temp_dir"))
        try:
            raise ray.exceptions.AuthenticationError("InvalidAuthToken")
        except ray.exceptions.RayError as e:
            raise ConnectionError("cannot connect") from e

    ray.init = init
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(GlomoError, match=rf"cluster at '{address}' asks for a token.*~/.ray/auth_token"):
            evaluate([job("double", marks)], evaluate_jobs.run, out, RayExecutor(address=address))
    with pytest.raises(GlomoError, match=r"Ray did not start here: cannot connect. `--executor process`"):
        evaluate([job("double", marks)], evaluate_jobs.run, out, RayExecutor())
    assert not Path(started[-1]).exists()


def address_without_cluster(out: Path, marks: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(GlomoError, match=rf"no Ray cluster at '127.0.0.1:{port}'.*ray start --head"):
        evaluate([job("double", marks)], evaluate_jobs.run, out, RayExecutor(address=f"127.0.0.1:{port}"))


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
        timeout=420,
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
