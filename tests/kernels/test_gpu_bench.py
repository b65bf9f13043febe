"""What `bench` of `make gpu` takes for right, on a CPU."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))
bench = importlib.import_module("gpu.bench")
gpu_cases = importlib.import_module("gpu.gpu_cases")


@pytest.mark.parametrize("live,sums", [(1.0, "qkvt"), (0.2, "v")])
def test_gradients_in_half_precision_are_near_enough(monkeypatch, live, sums):
    """Also where the weights of a row are planted, all alike: its slopes cancel, and gradients of q, k and theta are
    next to nothing. sums: gradients of which a part may not be larger by a half."""
    monkeypatch.setattr(gpu_cases.Sizes, "half", torch.bfloat16)
    case = gpu_cases.mix(gpu_cases.Sizes(dry=True), 1, 256, 128, 128, "both", live=live)
    result = case.ways["ours"]()()
    assert case.check(result) < bench.WORST
    for name in sums:
        spoilt = [x.clone() for x in result]
        spoilt["qkvt".index(name) - 4][:, :, 64:128] *= 1.5
        assert case.check(spoilt) > bench.WORST, name
