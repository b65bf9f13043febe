"""Small text, shards and configurations for the pretraining tests, and a way to run jobs in a group of ranks."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glomo_dist.data import Reading
from glomo_dist.model import GlomoConfig
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.runtime import json_files
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
# without processes that read and without a tracker, which take longer to start than such a run takes
PLAIN = dataclasses.replace(TINY, reading=Reading(readers=0), trackers=())


def begun(config: PretrainConfig, shards: Path, out: Path, ranks: int = 2) -> Path:
    """A run folder as it is just after the start."""
    json_files.write_json(out / "config.json", run_folder.describe(resolve(config, shards, out), ranks))
    return out


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
    command = [sys.executable, str(Path(__file__).with_name("rank_jobs.py")), str(listed), str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


PROGRAM = """
import sys
from glomo_dist.pretrain import PretrainConfig, pretrain
from glomo_dist.runtime import files, json_files
from glomo_dist.runtime.config import from_dict
from glomo_dist.runtime.errors import GlomoError
config = from_dict(PretrainConfig, json_files.read_json(sys.argv[1]))
try:
    pretrain(config, sys.argv[2], sys.argv[3], 2, restarts=int(sys.argv[4]))
except GlomoError as e:
    sys.exit(print(f"{type(e).__name__}: {e}", file=sys.stderr) or e.exit_code)
"""


def start_program(
    folder: Path, config: PretrainConfig, shards: Path, restarts: int = 0, **options: Any
) -> subprocess.Popen[bytes]:
    """A program that pretrains into folder/run; it speaks into folder/stderr, temporary files are in folder/tmp.

    options: of the process.
    """
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["TMPDIR"] = str(folder / "tmp")
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):  # a command that ran in this process may have set it
        environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM, str(folder / "config.json"), str(shards), str(folder / "run")]
    with open(folder / "stderr", "ab") as stderr:
        return subprocess.Popen([*command, str(restarts)], env=environment, stderr=stderr, **options)


def rank_process(ancestor: int, rank: int) -> int:
    """Process id of the given rank among the descendants of process `ancestor`."""
    parents, wanted = {}, []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if f"\0RANK={rank}\0".encode() in (entry / "environ").read_bytes():
                wanted.append(int(entry.name))
        except OSError:  # ended meanwhile, or not ours to read
            continue
    for pid in wanted:
        if parents[pid] in wanted:  # a reader of that rank
            continue
        above = pid
        while above in parents:
            above = parents[above]
            if above == ancestor:
                return pid
    raise AssertionError(f"no process of rank {rank} under {ancestor}: {wanted}")


def temporary_files(folder: Path) -> list[str]:
    """What such a program has left in folder/tmp; torch's own cache is not counted, it stays on purpose."""
    return [p.name for p in (folder / "tmp").iterdir() if not p.name.startswith("torchinductor")]


def steps_done(run: Path) -> int:
    """Steps in the log; a row that is being written does not count."""
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(happened: Callable[[], bool], seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.005)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith(("seconds", "per_second"))}


def weights_hash(run: Path) -> str:
    return json.loads((run / "model" / "config.json").read_text())["weights_sha256"]


class Canary:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")
