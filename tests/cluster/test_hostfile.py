"""The hostfile launches: ours over ssh, and DeepSpeed's launcher with the same file."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_samples import (
    CLUSTER,
    ROOT,
    RUN,
    STAND_INS,
    Network,
    environment,
    free_port,
    kill_group,
    left_by_stand_ins,
    wait_until,
)
from pretrain_samples import losses

LAUNCH = str(CLUSTER / "hostfile" / "launch.sh")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A hostfile of two "machines", both this one."""
    (tmp_path / "hosts").write_text("# two\nlocalhost slots=1\nlocalhost slots=2  # more\n")
    return tmp_path / "hosts"


def stand_in(folder: Path, do: str, port: str) -> dict[str, str]:
    python = str(STAND_INS / "interpreter")
    return environment(
        PYTHON=python, STAND_IN_DO=do, STAND_IN_STATE=str(folder), PORT=port, JOIN_SECONDS="20"
    )


def launch(variables: dict[str, str], *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [LAUNCH, *words]
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("node-a slots=0\n", 'expected "node-a slots=N"'),
        ("# nothing\n", "names no host"),
        ("localhost slots=2\nnode-b slots=2\n", 'node-b cannot meet the first host as "localhost"'),
        ("127.0.0.1 slots=2\nnode-b slots=2\n", 'node-b cannot meet the first host as "127.0.0.1"'),
    ],
)
def test_bad_hostfile(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "hosts").write_text(text)
    done = launch(environment(), str(tmp_path / "hosts"), "shards", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and named in done.stderr and str(tmp_path / "hosts") in done.stderr


def test_what_is_no_hostfile_and_where_no_temporary_file_can_be(here: Path, tmp_path: Path) -> None:
    done = launch(environment(), str(tmp_path), "shards")
    assert done.returncode == 2 and "HOSTFILE must be a readable file" in done.stderr
    done = launch(environment(TMPDIR=str(tmp_path / "missing")), str(here), "shards")
    assert done.returncode == 2 and str(tmp_path / "missing") in done.stderr


def test_bad_name_to_forward(here: Path) -> None:
    done = launch(environment(FORWARD="HF_HOME a-b"), str(here), "shards")
    assert (
        done.returncode == 2
        and "FORWARD: expected names of variables" in done.stderr
        and '"a-b"' in done.stderr
    )


@pytest.mark.parametrize(
    "text",
    [
        "localhost slots=1\nlocalhost slots=2",  # no newline at the end
        "\ufefflocalhost slots=1\r\n\r\nlocalhost slots=2\r\n",
        "localhost slots=1 max_slots=4\nlocalhost slots=2 max-slots=4 # of Open MPI\n",
    ],
)
def test_every_line_of_a_hostfile_counts_from_any_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text, encoding="utf-8", newline="")
    with socket.create_server(("", 0)) as meeting:
        variables = stand_in(tmp_path, "finish", str(meeting.getsockname()[1]))
        done = launch(variables, "hosts", "shards", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    calls = [(tmp_path / f"calls-{index}").read_text() for index in (0, 1)]
    assert all("NODES=2 MEET=localhost:" in call for call in calls)
    assert "<--nproc-per-node> <1>" in calls[0] and "<--nproc-per-node> <2>" in calls[1]


def test_the_user_for_ssh_is_no_part_of_the_meeting_point(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("me@localhost slots=1\n")
    (tmp_path / "ssh").write_text('#!/bin/sh\nexec sh -c "$(for last; do :; done; echo "$last")"\n')
    (tmp_path / "ssh").chmod(0o755)
    with socket.create_server(("", 0)) as meeting:
        variables = stand_in(tmp_path, "finish", str(meeting.getsockname()[1]))
        variables["PATH"] = f"{tmp_path}{os.pathsep}{variables['PATH']}"
        done = launch(variables, "hosts", "shards", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MEET=localhost:" in (tmp_path / "calls-0").read_text()


def test_each_machine_gets_its_part(here: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as meeting:  # the stand-in of the first host opens no port
        variables = stand_in(tmp_path, "finish", str(meeting.getsockname()[1]))
        done = launch(variables, str(here), "shards with space", "--out", "run's")
    assert done.returncode == 0, done.stderr
    for index, slots in ((0, 1), (1, 2)):
        (call,) = (tmp_path / f"calls-{index}").read_text().splitlines()
        assert f"NODE_INDEX={index} NODES=2" in call and f"<--nproc-per-node> <{slots}>" in call
        assert call.endswith("<pretrain> <shards with space> <--out> <run's>")


def test_a_failure_ends_the_others(here: Path, tmp_path: Path) -> None:
    """The first host fails; the second, which waits for it, is stopped before its own time is up."""
    variables = stand_in(tmp_path, "exit-3", free_port()) | {"JOIN_SECONDS": "100"}
    assert launch(variables, str(here), "shards").returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL])
def test_the_ranks_stop_with_the_launcher(here: Path, tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("", 0)) as meeting:
        variables = stand_in(tmp_path, "wait", str(meeting.getsockname()[1]))
        process = subprocess.Popen(
            [LAUNCH, str(here), "shards"], cwd=ROOT, env=variables, start_new_session=True
        )
        try:
            wait_until(lambda: all((tmp_path / f"waiting-{i}").exists() for i in (0, 1)), 20, "ranks")
            process.send_signal(number)
            assert process.wait(20) == (-9 if number == signal.SIGKILL else 75)
            wait_until(lambda: not left_by_stand_ins(tmp_path), 20, "the end of all processes")
        finally:
            kill_group(process)


@pytest.mark.slow
def test_over_ssh_to_two_hosts(network: Network, shards: Path, tmp_path: Path, round_number: int) -> None:
    (tmp_path / "hosts").write_text("node-0 slots=1\nnode-1 slots=1\n")
    variables = environment(
        STAND_IN_NETWORK=network.name, FORWARD="PYTHONPATH OMP_NUM_THREADS CUDA_VISIBLE_DEVICES"
    )
    variables["PATH"] = f"{STAND_INS}{os.pathsep}{variables['PATH']}"
    out = tmp_path / "run"
    settings = ["--recipe", "tiny", "--steps", "4", "--deepspeed", "cluster/deepspeed/zero2.json"]
    done = launch(variables, str(tmp_path / "hosts"), str(shards), "--out", str(out), *settings)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((out / "config.json").read_text())["ranks"] == 2
    assert len(losses(out)) == 4 and (out / "model").is_dir()


@pytest.mark.slow
def test_deepspeed_launcher_on_two_hosts(
    network: Network, shards: Path, tmp_path: Path, round_number: int
) -> None:
    (tmp_path / "hosts").write_text("node-0 slots=1\nnode-1 slots=1\n")
    variables = environment(STAND_IN_NETWORK=network.name)
    variables["PATH"] = f"{STAND_INS}{os.pathsep}{variables['PATH']}"
    out = tmp_path / "run"
    launcher = [
        str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(tmp_path / "hosts"), "--launcher", "pdsh",
        "--master_addr", "node-0", "--master_port", "29500", "--no_local_rank", "--module", "glomo_dist.cli",
    ]  # fmt: skip
    command = [*launcher, "pretrain", str(shards), "--out", str(out), *RUN, "--steps", "4"]
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads((out / "config.json").read_text())["ranks"] == 2 and len(losses(out)) == 4
