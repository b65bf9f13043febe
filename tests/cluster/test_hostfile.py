"""The launch files of cluster/, on one machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pretrain_samples import rows

ROOT = Path(__file__).resolve().parents[2]


def launch(hostfile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["cluster/hostfile/launch.sh", str(hostfile), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_hostfile_of_two_machines(tiny_shards: Path, tmp_path: Path) -> None:
    settings = ["--recipe", "tiny", "--steps", "4", "--deepspeed", "cluster/deepspeed/zero2.json"]
    out = tmp_path / "run"
    done = launch(ROOT / "cluster" / "local" / "hostfile", str(tiny_shards), "--out", str(out), *settings)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((out / "config.json").read_text())["ranks"] == 2
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4] and (out / "model").is_dir()


@pytest.mark.slow
def test_hostfile_launch_fails_as_a_whole(tmp_path: Path) -> None:
    done = launch(
        ROOT / "cluster" / "local" / "hostfile", str(tmp_path / "none"), "--out", str(tmp_path / "run")
    )
    assert done.returncode != 0 and "none" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "named"), [("node-a slots=0\n", 'expected "node-a slots=N"'), ("# nothing\n", "names no host")]
)
def test_bad_hostfile(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "hosts").write_text(text)
    done = launch(tmp_path / "hosts", "shards", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and named in done.stderr and str(tmp_path / "hosts") in done.stderr


def test_slurm_script_is_valid_bash() -> None:
    done = subprocess.run(
        ["bash", "-n", str(ROOT / "cluster/slurm/pretrain.sbatch")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
