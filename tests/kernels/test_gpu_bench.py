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


def test_what_is_compiled_is_not_compiled_again_while_it_is_timed(monkeypatch):
    """Without a GPU, of which the two ways with a CUDA graph are shown to be made of the same function."""
    made = []
    monkeypatch.setattr(gpu_cases, "compiled", lambda function, sizes: made.append(function) or function)
    monkeypatch.setattr(gpu_cases.timing, "in_a_graph", lambda run: run)
    monkeypatch.setattr(gpu_cases.Sizes, "device", "cpu")
    case = gpu_cases.mix(gpu_cases.Sizes(dry=False), 1, 20, 16, 16, "both", plain=True)
    for name in ("torch.compile", "torch.compile, CUDA graph"):
        case.ways[name]()()
    assert len(made) == 1
