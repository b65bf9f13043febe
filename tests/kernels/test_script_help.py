"""--help of the scripts that take no other flag: it was taken for an architecture, a folder, or nothing at all."""

import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
SCRIPTS = (
    ["benchmarks/cuda_resources.py"], ["benchmarks/rounded_sums.py"], ["-m", "gpu.report"], ["-m", "gpu.wheels"],
    ["sanitize.py"],
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script[-1])
def test_help_is_shown_and_nothing_is_done(script, tmp_path, monkeypatch):
    if script[0] != "-m":
        script = [str(KERNELS / script[0])]
    monkeypatch.setenv("PYTHONPATH", str(KERNELS / "benchmarks"), prepend=":")
    done = subprocess.run(
        [sys.executable, *script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_nvcc_does_not_know_is_said_without_a_traceback():
    script = [sys.executable, str(KERNELS / "benchmarks" / "cuda_resources.py"), "sm90"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "nvcc" in done.stderr and "Traceback" not in done.stderr
