"""Real training over two hosts, and what happens when one of them fails.

The long set: pytest tests/cluster/test_across_hosts.py --host-faults 5
"""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest
from cluster_samples import RUN, STEPS, Network, Slurm, kill_group, step_reached, wait_until
from pretrain_samples import losses, weights_hash

from glomo_dist.cli import main

pytestmark = pytest.mark.slow

LOST_SECONDS = 5.0  # the limits in the tests: of silence of the first host,
HANG_SECONDS = 5.0  # and of the watchdog of a rank
MORE_SECONDS = 15.0  # what is promised beyond them
WATCHED = ("--hang-timeout", str(HANG_SECONDS))
START_SECONDS = 300.0  # to the first steps, on a busy machine


@pytest.fixture(scope="module")
def on_one_host(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with both ranks on this machine, nothing in its way."""
    out = tmp_path_factory.mktemp("one-host") / "run"
    assert main(["pretrain", str(shards), "--out", str(out), "--ranks", "2", *RUN]) == 0
    return out


def assert_same(out: Path, reference: Path) -> None:
    assert len(losses(reference)) == STEPS
    assert losses(out) == losses(reference), "losses differ"
    assert weights_hash(out) == weights_hash(reference), "weights differ"


def both(network: Network, shards: Path, out: Path, late: int | None = None, *settings: str) -> list:
    """The run on both hosts; host `late` comes 3 s after the other."""
    order = (0, 1) if late != 0 else (1, 0)
    processes = {}
    for index in order:
        if index == late:
            time.sleep(3)
        processes[index] = network.pretrain(index, shards, out, *settings)
    return [processes[0], processes[1]]


def finish(network: Network, shards: Path, out: Path, late: int | None, *settings: str) -> None:
    codes = [process.wait(240) for process in both(network, shards, out, late, *settings)]
    assert codes == [0, 0], network.said("node-0")[-3000:] + network.said("node-1")[-3000:]


def fail(
    network: Network, shards: Path, out: Path, step: int, action: str, node: str, *settings: str
) -> dict[int, float]:
    """Start the run, `action` on the host at that step; seconds until torchrun ended on each host that lives."""
    processes = both(network, shards, out, None, *settings)
    began = time.monotonic()
    while step_reached(out) < step:
        assert all(p.poll() is None for p in processes), network.said("node-0")[-3000:]
        assert time.monotonic() < began + START_SECONDS
        time.sleep(0.01)
    assert network.hosts(action, node).returncode == 0
    began, ended = time.monotonic(), {}
    living = [i for i in (0, 1) if action == "cut" or f"node-{i}" != node]
    while len(ended) < len(living) and time.monotonic() < began + 120:
        for i in living:
            if i not in ended and processes[i].poll() is not None:
                ended[i] = time.monotonic() - began
        time.sleep(0.02)
    assert len(ended) == len(living), f"hangs: {ended}, {network.said('node-0')[-3000:]}"
    assert all(processes[i].returncode not in (0, None) for i in living)
    assert network.hosts("heal", node).returncode == 0
    print(f"{action} {node} at step {step}: ended after {ended}")
    return ended


def test_preempted_slurm_job_on_two_hosts(
    network: Network, shards: Path, tmp_path: Path, on_one_host: Path
) -> None:
    """Ranks on two hosts, stopped by a signal and started again, do what two ranks on one host do in one go."""
    out = tmp_path / "run"
    job = Slurm("pretrain.sbatch", tmp_path, (str(shards), "--out", str(out), *RUN), network=network.name)
    batch = job.start()
    try:
        wait_until(lambda: step_reached(out) >= 13, START_SECONDS, "steps")
        began = time.monotonic()
        batch.send_signal(signal.SIGUSR1)
        assert batch.wait(60) == 0 and job.requeued, job.said[-4000:]
        assert time.monotonic() - began < 30
    finally:
        kill_group(batch)
    assert 13 <= step_reached(out) < STEPS and not (out / "model").exists(), "stopped on the way"
    assert job.start().wait(240) == 0, job.said[-4000:]
    saved = re.search(r"continuing .* from step (\d+) of", job.said)
    assert saved and int(saved[1]) >= 13, "what was done until the signal was saved"
    assert_same(out, on_one_host)


def test_killed_first_host(network: Network, shards: Path, tmp_path: Path, on_one_host: Path) -> None:
    """The other host cannot know: nothing comes any more. It ends in time; started again, late, nothing is lost."""
    out = tmp_path / "run"
    ended = fail(network, shards, out, 23, "kill", "node-0")
    assert ended[1] < LOST_SECONDS + MORE_SECONDS and "has not answered" in network.said("node-1")
    finish(network, shards, out, 1)
    assert_same(out, on_one_host)


@pytest.mark.parametrize("action", ["kill", "cut"])
@pytest.mark.parametrize("node", ["node-0", "node-1"])
def test_lost_host_again_and_again(
    network: Network,
    shards: Path,
    tmp_path: Path,
    on_one_host: Path,
    action: str,
    node: str,
    round_number: int,
) -> None:
    out = tmp_path / "run"
    step = random.Random(f"{action} {node} {round_number}").randint(1, STEPS - 10)
    ended = fail(network, shards, out, step, action, node, *WATCHED)
    assert max(ended.values()) < max(LOST_SECONDS, HANG_SECONDS) + MORE_SECONDS
    finish(network, shards, out, round_number % 2, *WATCHED)
    assert_same(out, on_one_host)


def test_hosts_in_any_order(
    network: Network, shards: Path, tmp_path: Path, on_one_host: Path, round_number: int
) -> None:
    finish(network, shards, tmp_path / "run", round_number % 2)
    assert_same(tmp_path / "run", on_one_host)
