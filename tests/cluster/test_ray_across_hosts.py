"""Evaluations on a real Ray cluster of two hosts, one of which is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster_samples import CLUSTER, Network, wait_until
from transfer_samples import write_sst2

from glomo_dist.cli import main

pytestmark = pytest.mark.slow

IDLE_HOST_LOST = Path(__file__).with_name("idle_host_lost.py")
SEEDS = 4  # times two arms: jobs enough that the second host is at work for a while, whichever starts first
# Ray takes a silent host for lost after about 65 s; here sooner.
ALERT = {
    "RAY_health_check_initial_delay_ms": "500", "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip


def arguments(source: str, out: Path, *more: str) -> list[str]:
    return [
        "evaluate", "--tasks", "sst2", "--sources", f"sst2={source}", "--arms", "none", "uniform", "--features",
        "learned:8", "--hidden", "8", "--epochs", "60", "--patience", "60", "--seeds", *map(str, range(SEEDS)),
        "--out", str(out), *more,
    ]  # fmt: skip


def found(out: Path) -> dict[str, Any]:
    """What each job found, without how long it took and the state of the checkout."""
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob("results/*/result.json")}
    for result in results.values():
        del result["seconds"], result["job"]["threads"], result["code"]
        for epoch in result["curve"]:
            del epoch["seconds"]
    return results


def on(host: str, out: Path, name: str) -> dict[str, dict[str, Any]]:
    """What running.json (of jobs at work) or job.json (of finished ones) says of those on a host, by job."""
    found = {}
    for path in out.glob(f"results/*/{name}.json"):
        with contextlib.suppress(FileNotFoundError):  # running.json goes when the job ends
            value = json.loads(path.read_text())
            if host == (value.get("host") or value["machine"]["host"]):
                found[path.parent.name] = value
    return found


@pytest.fixture
def ray_hosts(network: Network, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A Ray cluster of both hosts, a core each."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)  # not the user's own
    for index in (0, 1):
        network.start(
            f"node-{index}", str(CLUSTER / "ray_host.sh"), "--num-cpus", "1", "--object-store-memory", "80000000",
            NODE_INDEX=str(index), MEET="node-0:6379", **ALERT,
        )  # fmt: skip
    wait_until(lambda: "will now block" in network.said("node-1"), 300, "a second host")
    return network


def test_a_host_is_lost_during_an_evaluation(ray_hosts: Network, tmp_path: Path) -> None:
    network = ray_hosts
    source, out, alone = write_sst2(tmp_path / "sst2"), tmp_path / "out", tmp_path / "alone"
    driver = network.start(
        "node-0", sys.executable, "-m", "glomo_dist.cli", *arguments(source, out, "--address", "node-0:6379")
    )

    def held() -> bool:
        """Whether a job is at work on the second host after another; it is stopped, not to end before its host."""
        assert driver.poll() is None, network.said("node-0")[-4000:]
        done = on("node-1", out, "job")
        for name, job in on("node-1", out, "running").items() if done else ():
            if name not in done:
                os.kill(job["pid"], signal.SIGSTOP)
                if name in on("node-1", out, "running") and name not in on("node-1", out, "job"):
                    return True
                os.kill(job["pid"], signal.SIGCONT)
        return False

    wait_until(held, 300, "a job done on the second host, and another begun")
    assert network.hosts("kill", "node-1").returncode == 0
    began = time.monotonic()
    assert main(arguments(source, alone, "--executor", "process")) == 0
    # the driver's host meanwhile did what was left, on a core as busy; on top comes what it takes to notice the loss
    assert driver.wait(60 + time.monotonic() - began) == 0, network.said("node-0")[-4000:]
    assert "host node-1 is lost" in network.said("node-0")
    assert on("node-0", out, "job") and on("node-1", out, "job")
    assert len(found(alone)) == 2 * SEEDS and found(out) == found(alone)


def test_what_is_sent_to_a_host_after_it_is_lost_waits_no_longer_than_its_loss_is_unknown(
    ray_hosts: Network, tmp_path: Path
) -> None:
    """For some seconds all take the host for one that has nothing to do. Ray alone would wait for more than 120 s."""
    driver = ray_hosts.start("node-0", sys.executable, str(IDLE_HOST_LOST), str(tmp_path / "out"))
    wait_until((tmp_path / "out.idle").exists, 300, "a job done on each host")
    assert ray_hosts.hosts("kill", "node-1").returncode == 0
    (tmp_path / "out.lost").touch()
    assert driver.wait(90) == 0, ray_hosts.said("node-0")[-4000:]
    assert "3 of 3 jobs finished" in ray_hosts.said("node-0")
