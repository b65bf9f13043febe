"""The batch scripts, with stand-ins of srun and scontrol that start real processes on "nodes" and hand on signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_samples import ROOT, STAND_INS, Slurm, kill_group, left_by_stand_ins, wait_until

WORDS = ("shards with space", "--out", "run's", "--recipe", "$tiny")


def slurm(folder: Path, do: str, script: str = "pretrain.sbatch", **more: str) -> Slurm:
    """The script with a stand-in for the interpreter, which does `do`."""
    more = {"STAND_IN_DO": do, "PYTHON": str(STAND_INS / "interpreter"), "JOIN_SECONDS": "20", **more}
    return Slurm(script, folder, WORDS, **more)


def at_work(job: Slurm) -> bool:
    return all((job.folder / f"waiting-{node}").exists() for node in (0, 1))


@pytest.fixture
def open_port() -> Iterator[str]:
    """Lets node 1 pass: the stand-in of node 0 opens no port, so the meeting point is one that is open."""
    with socket.create_server(("", 0)) as s:
        yield str(s.getsockname()[1])


def test_every_node_gets_its_part(tmp_path: Path, open_port: str) -> None:
    job = slurm(tmp_path, "finish", PORT=open_port)
    assert job.run() == 0 and not job.requeued, job.said
    for node in (0, 1):
        (call,) = job.calls(node)
        assert call.startswith(f"NODE_INDEX={node} NODES=2 MEET=localhost:{open_port} ")
        assert call.endswith("".join(f" <{word}>" for word in ("pretrain", *WORDS)))
    assert "<--nnodes> <2> <--nproc-per-node> <1>" in job.calls(0)[0] and "\n0: NODE_INDEX" in job.said


def test_tasks_have_the_cores_of_the_job(tmp_path: Path, open_port: str) -> None:
    job = slurm(tmp_path, "finish", PORT=open_port, SLURM_CPUS_PER_TASK="16")
    assert job.run() == 0 and all(" CPUS=16 " in job.calls(node)[0] for node in (0, 1)), job.said


def test_both_steps_of_an_evaluation_have_the_cores_of_the_job(tmp_path: Path) -> None:
    job = slurm(tmp_path, "finish", "evaluate.sbatch", SLURM_CPUS_PER_TASK="16")
    assert job.run() == 0, job.said
    assert all(" CPUS=16 " in job.calls(node)[0] for node in (0, 1, "x"))


def test_a_job_of_many_nodes(tmp_path: Path) -> None:
    """Their names are more than a pipe holds."""
    script = '. cluster/slurm/job.sh; meet; echo "$first"'
    nodes = ",".join(f"node-{i}" for i in range(20000))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\nexec tr , '\\n' < {tmp_path}/nodes\n")
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "nodes").write_text(nodes)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[0-19999]",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=variables, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "node-0", done.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_preempted_job_goes_back_into_the_queue(
    tmp_path: Path, open_port: str, number: signal.Signals
) -> None:
    job = slurm(tmp_path, "wait", PORT=open_port)
    batch = job.start()
    try:
        wait_until(lambda: at_work(job), 30, "ranks at work")
        batch.send_signal(number)  # to the batch shell alone, as --signal=B: does
        assert batch.wait(30) == 0
    finally:
        kill_group(batch)
    assert job.requeued and job.said.count(f"got {number.name.removeprefix('SIG')}") == 2, job.said
    assert job.run(STAND_IN_DO="finish") == 0 and not job.requeued and "start 2" in job.said


def test_ranks_that_were_told_alone(tmp_path: Path, open_port: str) -> None:
    """scancel --signal=USR1 reaches the tasks and not the script: their exit code 75 says it."""
    job = slurm(tmp_path, "exit-75", PORT=open_port)
    assert job.run() == 0 and job.requeued


@pytest.mark.parametrize("code", [1, 2, 69, 137])
def test_a_failure_is_not_repeated(tmp_path: Path, open_port: str, code: int) -> None:
    job = slurm(tmp_path, f"exit-{code}", PORT=open_port)
    assert job.run() == code and not job.requeued and f"failed with exit code {code}" in job.said


def test_finished_while_the_signal_came(tmp_path: Path, open_port: str) -> None:
    job = slurm(tmp_path, "wait", PORT=open_port, STAND_IN_STOPPED="0")
    batch = job.start()
    try:
        wait_until(lambda: at_work(job), 30, "ranks at work")
        batch.send_signal(signal.SIGUSR1)
        assert batch.wait(30) == 0 and not job.requeued
    finally:
        kill_group(batch)


def test_requeues_are_counted(tmp_path: Path, open_port: str) -> None:
    job = slurm(tmp_path, "exit-75", PORT=open_port, MAX_REQUEUES="1")
    assert job.run() == 0 and job.requeued
    assert job.run() == 75 and not job.requeued


@pytest.mark.parametrize("script", ["pretrain.sbatch", "evaluate.sbatch"])
@pytest.mark.parametrize(
    ("name", "value"), [("MAX_REQUEUES", "unlimited"), ("MAX_REQUEUES", "08"), ("JOIN_SECONDS", "abc")]
)
def test_a_setting_that_is_no_number_is_named_before_anything_runs(
    tmp_path: Path, script: str, name: str, value: str
) -> None:
    """And not at the end, when the job should go back into the queue."""
    job = slurm(tmp_path, "exit-75", script, **{name: value})
    assert job.run() == 2 and not job.requeued
    assert f"{name} must be a whole number from " in job.said and f'got "{value}"' in job.said
    assert not list(tmp_path.glob("calls-*"))


def test_outside_of_the_checkout(tmp_path: Path) -> None:
    job = slurm(tmp_path, "finish")
    assert job.run(SLURM_SUBMIT_DIR=str(tmp_path)) == 2 and "run sbatch from the checkout" in job.said


@pytest.mark.parametrize(("do", "code"), [("finish", 0), ("exit-2", 2)])
def test_evaluation_starts_ray_first_and_ends_it(tmp_path: Path, do: str, code: int) -> None:
    job = slurm(tmp_path, do, "evaluate.sbatch")
    assert job.run() == code and not job.requeued, job.said
    (head,), (worker,), (evaluate,) = job.calls(0), job.calls(1), job.calls("x")
    assert "<--head>" in head and "<--num-cpus> <2>" in head
    address = head.split("MEET=")[1].split()[0]
    assert f"<--address> <{address}>" in worker
    assert evaluate.endswith("".join(f" <{word}>" for word in ("evaluate", *WORDS, "--address", address)))
    assert not left_by_stand_ins(tmp_path), "processes outlive the job"


def test_evaluation_goes_back_into_the_queue(tmp_path: Path) -> None:
    job = slurm(tmp_path, "wait", "evaluate.sbatch")
    batch = job.start()
    try:
        wait_until(lambda: (tmp_path / "waiting-x").exists(), 30, "evaluation at work")
        batch.send_signal(signal.SIGUSR1)
        assert batch.wait(30) == 0 and job.requeued, job.said
    finally:
        kill_group(batch)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_evaluation_goes_back_into_the_queue_also_while_it_waits_for_ray(
    tmp_path: Path, number: signal.Signals
) -> None:
    job = slurm(tmp_path, "silent", "evaluate.sbatch")
    batch = job.start()
    try:
        wait_until(lambda: (tmp_path / "calls-0").exists(), 30, "Ray's head is started")
        batch.send_signal(number)
        assert batch.wait(30) == 0 and job.requeued and not (tmp_path / "calls-x").exists(), job.said
        assert f"stopped by {number.name}: back into the queue (this was start 1)" in job.said
    finally:
        kill_group(batch)
