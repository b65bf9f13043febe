"""Small text, shards and configurations for the pretraining tests, and a way to run jobs in a group of ranks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from glomo_dist.model import GlomoConfig
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.runtime.config import to_dict

TINY = PretrainConfig(
    model=GlomoConfig(width=16, heads=2, layers=2, key_layers=1, query_layers=1),
    window=24,
    global_batch=8,
    steps=6,
    checkpoint_every=3,
    lr=3e-2,
    weight_decay=0.1,
    positions_per_sequence=4,
)


def write_text(path: Path, documents: int = 60, seed: int = 0) -> Path:
    """Sentences of a small Markov chain, of 3 to 90 words: so windows of all lengths."""
    draw = random.Random(seed)
    rows = []
    for _ in range(documents):
        state, words = draw.randrange(40), []
        for _ in range(draw.randint(3, 90)):
            state = (state * 3 + draw.randrange(4)) % 40
            words.append(f"w{state}")
        rows.append(json.dumps({"text": " ".join(words)}))
    path.write_text("\n".join(rows) + "\n")
    return path


def job(config: PretrainConfig, data: Path, out: Path, do: str = "train") -> dict[str, Any]:
    return {"do": do, "config": to_dict(config), "data": str(data), "out": str(out)}


def run_ranks(folder: Path, jobs: list[dict[str, Any]], ranks: int) -> str:
    """Do `jobs` in one group of `ranks` processes on CPU; returns what they printed."""
    listed = folder / f"jobs-{ranks}-{len(jobs)}.json"
    listed.write_text(json.dumps(jobs))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        str(Path(__file__).with_name("rank_jobs.py")), str(listed),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith("seconds")}


def weights_hash(run: Path) -> str:
    return json.loads((run / "model" / "config.json").read_text())["weights_sha256"]
