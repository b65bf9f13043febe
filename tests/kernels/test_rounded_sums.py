"""What docs/numerics.md says of the sums of rounded weights."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))
import rounded_sums


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dividing_by_the_sum_of_the_rounded_weights_is_better(dtype):
    exact, rounded = (rounded_sums.worst(dtype, by_rounded) for by_rounded in (False, True))
    assert all(ours < 1 and 2 * ours < theirs for ours, theirs in zip(rounded, exact, strict=True))
