"""cluster/torchrun.py with ranks that only wait: the exit codes, and a first host that falls silent."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cluster_samples import CLUSTER, Network, environment, free_port, wait_until

LOST_SECONDS = 3.0

WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that hangs
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print(f"rank {os.environ['RANK']} waits", flush=True)
time.sleep(300)
"""

SAVING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(75)))
pathlib.Path("waits").touch()
time.sleep(300)
"""

JOINED = """
import os, pathlib, time
pathlib.Path(f"{os.environ['RANK']} of {os.environ['WORLD_SIZE']}").touch()
time.sleep(300 if os.environ["WORLD_SIZE"] == "1" else 0)
"""

LEFT = """
import os, pathlib, sys, time
world = os.environ["WORLD_SIZE"]
pathlib.Path(f"{os.environ['RANK']} of {world}").touch()
while world == "2" and not pathlib.Path("lost").exists():
    time.sleep(0.05)
sys.exit(71 if world == "2" else 0)  # as where the other rank is missed in a collective
"""


def test_torchrun_ends_with_the_code_of_the_rank(tmp_path: Path) -> None:
    """Code 75 must reach the scheduler; plain torchrun makes 1 of it."""
    rank = tmp_path / "rank.py"
    rank.write_text("import os, sys, time\ntime.sleep(int(os.environ['RANK']) * 0.5)\nsys.exit(75)\n")
    command = [
        sys.executable,
        str(CLUSTER / "torchrun.py"),
        "--standalone",
        "--nproc-per-node",
        "2",
        str(rank),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 75 and "rank 0 ended first, with exit code 75" in done.stderr, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ranks_save_whatever_asks_them_to_stop(number: signal.Signals, tmp_path: Path) -> None:
    """Code 75 says that they have; they do so after SIGTERM."""
    program = tmp_path / "glomo_dist" / "cli.py"
    program.parent.mkdir()
    program.write_text(SAVING)
    meet = f"localhost:{free_port()}"
    variables = environment(NODES="1", NODE_INDEX="0", MEET=meet, PYTHONPATH="", TMPDIR=str(tmp_path))
    process = subprocess.Popen(
        [str(CLUSTER / "pretrain_host.sh"), "shards"],
        cwd=tmp_path, env=variables, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    try:
        wait_until((tmp_path / "waits").exists, 60, "a rank at work")
        process.send_signal(number)
        assert process.wait(30) == 75 and (tmp_path / "saved").exists()
        assert not list(tmp_path.glob("torchelastic_*")), "one such folder of torchrun's stayed for each run"
    finally:
        process.kill()


@contextlib.contextmanager
def elastic(
    folder: Path, *more: str, first: Callable[[], object] = list
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """torchrun.py on two hosts of 1:2, with rank.py of the folder; `first` is done before the second one starts."""
    meet = f"localhost:{free_port()}"
    processes = []
    try:
        for index in (0, 1):
            settings = (
                f"is_host={str(index == 0).lower()},read_timeout=3,last_call_timeout=1,keep_alive_interval=1"
            )
            words = [
                sys.executable, str(CLUSTER / "torchrun.py"), "--nnodes", "1:2", "--nproc-per-node", "1", *more,
                "--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", meet, "--rdzv-conf", settings,
                "--local-addr", "localhost", str(folder / "rank.py"),
            ]  # fmt: skip
            variables = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1", NODE_INDEX=str(index), MEET=meet)
            processes.append(subprocess.Popen(words, env=variables, cwd=folder))
            if index == 0:
                first()
        yield processes
    finally:
        for process in processes:
            process.kill()


def test_a_host_joins_another_at_work(tmp_path: Path) -> None:
    """NODES=1:2. Without the variable, which pretrain_host.sh sets, both hosts end: torch (2.13) tells who comes
    later nothing of the store."""
    (tmp_path / "rank.py").write_text(JOINED)
    alone = partial(wait_until, (tmp_path / "0 of 1").exists, 60, "a rank alone at work")
    with elastic(tmp_path, first=alone) as processes:
        assert [process.wait(60) for process in processes] == [0, 0]
        assert {path.name for path in tmp_path.glob("* of *")} == {"0 of 1", "0 of 2", "1 of 2"}


def test_a_host_goes_on_alone(tmp_path: Path) -> None:
    """NODES=1:2 with RESTARTS: the other one is lost and does not come back."""
    (tmp_path / "rank.py").write_text(LEFT)
    with elastic(tmp_path, "--max-restarts", "1") as processes:
        wait_until(lambda: len(list(tmp_path.glob("* of 2"))) == 2, 60, "both at work")
        processes[1].kill()
        (tmp_path / "lost").touch()
        assert processes[0].wait(60) == 0 and (tmp_path / "0 of 1").exists()


def test_silent_first_host(network: Network, tmp_path: Path) -> None:
    """Packets vanish and no RST comes. torchrun alone still waits after ten minutes."""
    (tmp_path / "rank.py").write_text(WAITING)
    processes = []
    for index in (0, 1):
        settings = f"is_host={str(index == 0).lower()},read_timeout={LOST_SECONDS:.0f}"
        words = [
            sys.executable, str(CLUSTER / "torchrun.py"), "--nnodes", "2", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", "node-0:29500", "--rdzv-conf", settings,
            "--signals_to_handle", "SIGTERM,SIGUSR1", str(tmp_path / "rank.py"),
        ]  # fmt: skip
        variables = {"NODE_INDEX": str(index), "MEET": "node-0:29500", "LOST_SECONDS": str(LOST_SECONDS)}
        processes.append(network.start(f"node-{index}", *words, **variables))
        if index == 0:
            time.sleep(2)
    first, second = processes
    wait_until(lambda: "waits" in network.said("node-0") and "waits" in network.said("node-1"), 60, "ranks")
    began = time.monotonic()
    assert network.hosts("cut", "node-1").returncode == 0
    assert second.wait(60) == 69, network.said("node-1")
    assert time.monotonic() - began < LOST_SECONDS + 15
    assert f"has not answered at node-0:29500 for {LOST_SECONDS:.0f} s" in network.said("node-1")
    first.send_signal(signal.SIGUSR1)
    assert first.wait(60) == 75, network.said("node-0")
    assert network.hosts("kill", "node-0").returncode == 0 and network.hosts("kill", "node-1").returncode == 0
