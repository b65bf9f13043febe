"""What the tests of affinity_mix on Triton share: dtypes, inputs on the device, the measure of errors."""

import pytest
import test_affinity_mix as plain
import torch
from glomo_kernels import affinity_mix
from triton_here import DEVICE

pytest.importorskip("triton", reason="Triton is only made for Linux")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pytest_generate_tests(metafunc):
    """For the modules that import it: a test with an argument `dtype` runs in each."""
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=str)


def on_device(*tensors, **options):
    """affinity_mix of CPU tensors, computed on DEVICE; gradients find their way back."""
    moved = [None if x is None else x.to(DEVICE) for x in tensors]
    options = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    result = affinity_mix(*moved, **options)
    if isinstance(result, tuple):
        return result[0].cpu(), type(result[1])(*(x.cpu() for x in result[1]))
    return result.cpu()


def check(inputs, dtype, with_theta, options):
    """Against the dense formula: errors at most twice those of PyTorch in that dtype.

    Plain float16 gives NaN (epsilon is 0 there), and rounded scores have other edges among the largest: then the
    measure is the exact result, rounded.
    """
    results = plain.both(inputs, dtype, with_theta, options)
    if dtype == torch.float16 or (dtype == torch.bfloat16 and options.get("kind") == "topk"):
        results[2] = [x.to(dtype) for x in results[1]]
    plain.compare(results)
