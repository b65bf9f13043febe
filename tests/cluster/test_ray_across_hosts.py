"""`glomo evaluate` on a Ray cluster of two hosts. Of the long set: starting Ray twice takes a while."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from cluster_samples import Network, Slurm
from road_samples import Raw


@pytest.mark.slow
def test_evaluation_on_two_hosts(network: Network, raw: Raw, tmp_path: Path, round_number: int) -> None:
    """By the batch script, as a user would: head and worker on their hosts, jobs on both, nothing left at the end."""
    data = tmp_path / "docstring"
    data.mkdir()
    (data / "docstring.jsonl").write_text(raw.docstrings.read_text())
    words = (
        "--tasks", "docstring", "--sources", f"docstring={data / 'docstring.jsonl'}", "--arms", "none", "uniform",
        "--seeds", "0", "1", "--epochs", "1", "--features", "learned:8", "--out", str(tmp_path / "results"),
    )  # fmt: skip
    job = Slurm("evaluate.sbatch", tmp_path, words, network=network.name, SLURM_CPUS_ON_NODE="1")
    batch = job.start()
    try:
        code = batch.wait(300)
    finally:
        if batch.poll() is None:
            batch.send_signal(signal.SIGTERM)
    assert code == 0, job.said[-5000:]
    done = sorted((tmp_path / "results" / "results").glob("*/job.json"))
    assert len(done) == 4
    machines = {json.loads(path.read_text())["machine"]["host"] for path in done}
    assert machines == {"node-0", "node-1"}, "jobs ran on both hosts"
