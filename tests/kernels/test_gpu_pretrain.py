"""The part of `make gpu` that trains, where something in it fails or hangs; no GPU, and nothing is trained."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))
part = importlib.import_module("gpu.part")
pretrain = importlib.import_module("gpu.pretrain")


def test_a_failure_in_pretrain_does_not_take_the_speed_along(tmp_path, monkeypatch):
    """Nor does a run that hangs, beside the others or one that goes on."""
    sleeper = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(98.7)'])"
    )

    def start_run(config, data, out, on_cpu=False):
        return subprocess.Popen([sys.executable, "-c", sleeper])

    def train_here(config, data, out, ranks):
        if out.name == "fp32":
            raise RuntimeError("CUDA error: no kernel image\nis available")
        for name in ("checkpoints/step-000002", "checkpoints/step-000004"):
            (out / name).mkdir(parents=True)
        for name in ("config.json", "log.jsonl"):
            (out / name).touch()
        return [3.0, 2.0]

    monkeypatch.setattr(pretrain, "start_run", start_run)
    monkeypatch.setattr(pretrain, "train_here", train_here)
    monkeypatch.setattr(pretrain, "shards", lambda part, folder: folder)
    monkeypatch.setattr(pretrain, "begin_alone", lambda: None)
    monkeypatch.setattr(pretrain, "speed", lambda part, *rest: part.note("speed was measured"))
    here = part.Part(tmp_path, tmp_path / "notes", True, 3.0)
    with pytest.raises(SystemExit, match=r"^fp32 failed; to go on failed$"):
        pretrain.main(here)
    notes = (tmp_path / "notes").read_text()
    assert (
        "fp32 FAILED: RuntimeError: CUDA error: no kernel image\n" in notes and "speed was measured" in notes
    )
    assert [row["loss"] for row in part.read_table(tmp_path / "pretrain.csv")] == ["3", "2", "", ""]
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "import time; time.sleep(98.7)" not in running
