"""The local hosts themselves: addresses, names, cut links, dead hosts, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hosts
import pytest
from cluster_samples import CLUSTER, Network, wait_until

PROGRAM = str(CLUSTER / "local" / "hosts.py")

ECHO = """
import socket
with socket.create_server(("", 4000)) as server:
    print("ready", flush=True)
    other, _ = server.accept()
    while data := other.recv(9):
        other.sendall(data)
print("closed", flush=True)
"""

CALL = """
import socket, sys, time
s = socket.create_connection(("node-0", 4000), timeout=5)
print(s.getpeername()[0], socket.gethostname(), flush=True)
s.settimeout(1)
for number, line in enumerate(sys.stdin):
    s.sendall(bytes([number]))
    try:
        while (data := s.recv(1)) not in (b"", bytes([number])):
            pass  # the late answer to an earlier question
        print("answer" if data else "closed", flush=True)
    except (TimeoutError, OSError) as e:
        print(type(e).__name__, flush=True)
"""


def test_connections_names_cuts_and_kills(network: Network) -> None:
    server = network.start("node-0", sys.executable, "-c", ECHO)
    wait_until(lambda: "ready" in network.said("node-0"), 20, "server")
    command = [PROGRAM, "run", "--name", network.name, "node-1", "--", sys.executable, "-c", CALL]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    network.started.append(client)  # type: ignore[arg-type]
    assert client.stdin is not None and client.stdout is not None

    def ask() -> str:
        client.stdin.write("\n")
        client.stdin.flush()
        return client.stdout.readline().strip()

    assert client.stdout.readline().split() == ["10.77.0.1", "node-1"]
    assert ask() == "answer"
    assert network.hosts("cut", "node-1").returncode == 0
    assert ask() == "TimeoutError", "packets vanish, nobody is told"
    assert network.hosts("heal", "node-1").returncode == 0
    wait_until(lambda: ask() == "answer", 20, "the same connection after healing")
    assert network.hosts("kill", "node-0").returncode == 0
    assert server.wait(10) == -signal.SIGKILL
    assert ask() == "TimeoutError", "a host without power sends no FIN and no RST"


def test_hosts_have_cores_of_their_own(network: Network) -> None:
    cores = len(os.sched_getaffinity(0))
    show = "import os; print(len(os.sched_getaffinity(0)))"
    for node in ("node-0", "node-1"):
        assert network.start(node, sys.executable, "-c", show).wait(20) == 0
    counts = [int(network.said(node)) for node in ("node-0", "node-1")]
    assert sum(counts) == cores if cores > 1 else counts == [1, 1]


def test_exit_codes_and_wrong_names(network: Network) -> None:
    assert network.start("node-0", "sh", "-c", "exit 75").wait(20) == 75
    wrong = network.hosts("cut", "node-7")
    assert wrong.returncode == 1 and "no host 'node-7'" in wrong.stderr and "node-0, node-1" in wrong.stderr
    again = network.hosts("up")
    assert again.returncode == 1 and "is up already" in again.stderr
    nowhere = subprocess.run([PROGRAM, "run", "node-0"], capture_output=True, text=True, check=False)
    assert nowhere.returncode == 2 and "needs a command" in nowhere.stderr


def test_down_clears_everything_and_can_be_repeated(network: Network) -> None:
    process = network.start("node-0", "sh", "-c", "trap '' TERM INT HUP; echo ready; sleep 300 & wait")
    wait_until(lambda: "ready" in network.said("node-0"), 20, "process")
    for _ in range(2):
        assert network.hosts("down").returncode == 0
        assert network.name not in hosts.networks()
        assert not list(Path("/etc/netns").glob(f"{network.name}*"))
    assert process.wait(10) == -signal.SIGKILL


def test_down_takes_what_is_only_starting(network: Network) -> None:
    started = [network.start("node-0", "sleep", "300") for _ in range(4)]
    assert network.hosts("down").returncode == 0
    for process in started:
        assert process.wait(10) != 0


def test_up_that_was_killed_leaves_nothing_after_down(reason_against_hosts: str | None) -> None:
    if reason_against_hosts:
        pytest.skip(f"no local hosts: {reason_against_hosts}")
    name = f"glomo-test-{os.getpid()}-torn"
    try:
        for milliseconds in (30, 60, 90, 120):
            up = subprocess.Popen(
                [PROGRAM, "up", "--name", name, "--hosts", "20"],
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            time.sleep(milliseconds / 1000)
            os.killpg(up.pid, signal.SIGKILL)  # and the `ip` that it runs, which would end what it has begun
            up.wait()
            hosts.down(name)
            assert name not in hosts.networks()
        assert hosts.up(name, 3) == ["node-0", "node-1", "node-2"]
    finally:
        hosts.down(name)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root can become another user")
def test_reason_without_root() -> None:
    done = subprocess.run(
        ["python3", "-I", "-c", Path(PROGRAM).read_text(), "why-not"],
        capture_output=True, text=True, check=False, user=65534, group=65534, extra_groups=[], cwd="/",
    )  # fmt: skip
    assert done.returncode == 1 and "root is needed" in done.stderr, done.stderr


def test_reason_without_iproute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = hosts.why_not()
    assert reason is not None and ("ip and unshare not found" in reason or "are of Linux" in reason)
