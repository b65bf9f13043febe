"""The commands that measure reading and checkpoints run, and say what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def said(module: str, *arguments: str) -> str:
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_what_reading_and_a_checkpoint_cost() -> None:
    sizes = ("--width", "16", "--batch", "2", "--megabytes", "0.1")
    out = said("glomo_dist.pretrain.bench", *sizes, "--steps", "2", "--rounds", "1")
    shares = [float(share) for share in re.findall(r"([\d.]+)% of", out)]
    assert len(shares) == 2 and all(0 <= share <= 100 for share in shares)
    assert re.search(r"a checkpoint, \d+ MB of state.*training waits [\d.]+ s", out, re.DOTALL)


def test_how_fast_data_is_read() -> None:
    out = said("glomo_dist.data.bench", "--megabytes", "0.2", "--units", "50")
    rates = dict(re.findall(r"^  (\S.*?) +([\d.]+) MB/s", out, re.MULTILINE))
    assert len(rates) == 8 and all(float(rate) > 0 for rate in rates.values())
