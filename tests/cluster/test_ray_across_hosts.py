"""A real evaluation on a real Ray cluster of two hosts, one of which is lost on the way."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_samples import CLUSTER, Network, wait_until
from transfer_samples import write_sst2

from glomo_dist.cli import main

pytestmark = pytest.mark.slow

SEEDS = 6  # times two arms: jobs enough that the second host is at work for a while, whichever starts first
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


def hosts_of(out: Path, name: str) -> list[str]:
    """The hosts in running.json (jobs at work) or job.json (finished ones)."""
    values = []
    for path in out.glob(f"results/*/{name}.json"):
        with contextlib.suppress(FileNotFoundError):  # running.json goes when the job ends
            values.append(json.loads(path.read_text()))
    return [value.get("host") or value["machine"]["host"] for value in values]


def test_a_host_is_lost_during_an_evaluation(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)  # not the user's own
    source, out, alone = write_sst2(tmp_path / "sst2"), tmp_path / "out", tmp_path / "alone"
    for index in (0, 1):
        network.start(
            f"node-{index}", str(CLUSTER / "ray_host.sh"), "--num-cpus", "1", "--object-store-memory", "80000000",
            NODE_INDEX=str(index), MEET="node-0:6379", **ALERT,
        )  # fmt: skip
    wait_until(lambda: "will now block" in network.said("node-1"), 120, "a second host")
    driver = network.start(
        "node-0", sys.executable, "-m", "glomo_dist.cli", *arguments(source, out, "--address", "node-0:6379")
    )

    def both_have_worked() -> bool:
        assert driver.poll() is None, network.said("node-0")[-4000:]
        return "node-1" in hosts_of(out, "job") and "node-1" in hosts_of(out, "running")

    wait_until(both_have_worked, 120, "a job done on the second host, and another begun")
    assert network.hosts("kill", "node-1").returncode == 0
    assert main(arguments(source, alone, "--executor", "process")) == 0
    assert driver.wait(120) == 0, network.said("node-0")[-4000:]
    assert "host node-1 is lost" in network.said("node-0")
    assert set(hosts_of(out, "job")) == {"node-0", "node-1"}
    assert len(found(alone)) == 2 * SEEDS and found(out) == found(alone)
