"""Which instructions look first (test_screen.py), and that other looks, and none, find the same: in processes that
may not use all that this processor has."""

import functools
import os
import subprocess
import sys

import pytest
import torch
from glomo_kernels import affinity_mix, dispatch
from kernel_oracle import of_processor
from test_screen import inputs_of, pytestmark

__all__ = ["pytestmark"]

BAD = [(where, bad) for where in ("q", "k", "theta") for bad in (torch.nan, torch.inf, -torch.inf, 3.4e38)]
MIXED = """
import torch
from glomo_kernels import affinity_mix
torch.save([affinity_mix(*inputs) for inputs in torch.load("{file}", weights_only=True)], "{file}")
"""


def spoilt(where, bad):
    torch.manual_seed(0)
    q, k, v, theta = (x.float() for x in inputs_of(150, above=2.0))
    {"q": q[..., 3], "k": k[..., 3], "theta": theta}[where][1, 0, 70] = bad
    return q, k, v, theta


def in_process(folder, most, cases):
    """What comes of each case in another process, which knows no more than the loops of `most`."""
    file = folder / "tensors"
    torch.save(cases, file)
    environment = {**os.environ, dispatch.VARIABLE: "cpp", "GLOMO_SIMD": most}
    subprocess.run([sys.executable, "-c", MIXED.format(file=file)], check=True, env=environment)
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def without_screen(tmp_path_factory):
    results = in_process(tmp_path_factory.mktemp("tensors"), "avx512", [spoilt(*case) for case in BAD])
    return dict(zip(BAD, results, strict=True))


@pytest.mark.parametrize("where,bad", BAD)
def test_what_is_not_finite_spoils_the_same_rows_as_without_screen(without_screen, where, bad):
    got, plain = affinity_mix(*spoilt(where, bad)), without_screen[where, bad]
    assert torch.equal(got.isfinite(), plain.isfinite())
    torch.testing.assert_close(got.nan_to_num(), plain.nan_to_num(), rtol=1e-4, atol=1e-5)


@functools.cache
def look_of(most):
    """What looks first, in a process of its own."""
    code = "from glomo_kernels import cpu_extension; print(cpu_extension.loaded().look())"
    command, environment = [sys.executable, "-c", code], {**os.environ, "GLOMO_SIMD": most}
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("most", ["avx2", "avx_vnni", "avx512", "avx512_vnni", "amx"])
def test_the_look_is_the_best_that_is_allowed(most):
    has = of_processor("flags")
    if most == "avx2" or (most == "avx512" and "avx512f" in has):
        wanted = [""]
    elif most == "avx_vnni" or "avx512f" not in has:
        wide = {"avx512vl", "avx512_vnni"} <= set(has)  # there, the loops for other machines can be tried
        wanted = ["avx_vnni" if "avx_vnni" in has or wide else ""]
    else:
        wanted = ["avx512_vnni" if "avx512_vnni" in has else ""]
    if most == "amx" and "amx_bf16" in has:
        wanted = ["amx", *wanted]  # a system may not lend the tiles
    assert look_of(most) in wanted


@pytest.mark.parametrize("most", ["avx_vnni", "avx512_vnni"])
@pytest.mark.parametrize("width", [101, 256])
def test_looks_of_other_machines(tmp_path, width, most):
    if look_of(most) != most:
        pytest.skip(f"this processor has no {most}")
    inputs = [x.float() for x in inputs_of(200, width, above=1.5)]
    looked, plain = (in_process(tmp_path, name, [inputs])[0] for name in (most, "avx2"))
    torch.testing.assert_close(looked, plain, rtol=1e-4, atol=1e-5)
