"""The Triton kernels compile for GPUs that are not here, with matrix instructions and without spilled registers."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "benchmarks"))
import ahead_of_time
from triton_launches import SHARED, Request

pytest.importorskip("triton", reason="Triton is only made for Linux")
pytestmark = pytest.mark.slow

MATRIX = {80: {"HMMA"}, 90: {"HGMMA"}, 100: {"UTCHMMA"}}
QUICK = [request for arch in MATRIX for request in ahead_of_time.quick(arch)]


@pytest.fixture(scope="module")
def compiler():
    compiler = ahead_of_time.Compiler()
    yield compiler
    compiler.close()


@pytest.mark.parametrize("request_", QUICK, ids=lambda r: f"sm_{r.arch}-{r.width}-{r.values}-{r.kernel}")
def test_first_choice_takes_no_more_than_there_is(compiler, request_):
    found = compiler.resources(request_)
    assert "error" not in found, found["error"]
    # None at the paper's shape on Hopper; elsewhere a few registers, set aside outside of the loop, are no loss.
    paper = (request_.arch, request_.width, request_.values) == (90, 256, 64)
    assert found["stack"] <= (0 if paper else 16) and found["spills"] <= found["stack"] // 4, found
    assert found["registers"] <= 255
    assert found["shared"] <= SHARED[request_.arch]
    assert set(found["matrix"].split("+")) == MATRIX[request_.arch], found
    assert (found["work"] or 1) <= (1.25 if request_.arch == 80 else 1), "warps repeat each other's products"
    assert found["slow"] == 0, "numbers are rounded one by one"
    assert found["copy"], "loads wait for each other: no asynchronous copies"


@pytest.mark.parametrize("arch", MATRIX)
def test_softmax_of_the_decoder(compiler, arch):
    request = Request("softmax_kernel", arch, "bfloat16", 0, 0, "", False)
    found = compiler.resources(request)
    assert "error" not in found, found["error"]
    assert found["stack"] == found["slow"] == 0 and found["registers"] <= 128, found
    assert found["narrow"] <= 1, "an odd number of words is read one by one"  # the target's is one


def test_a_compilation_that_fails_is_a_row_of_the_table(compiler):
    found = compiler.resources(Request("no_kernel", 90, "bfloat16", 64, 64))
    assert found["error"].startswith("exit 1: ValueError: no kernel 'no_kernel'")
    too_much = Request("forward_kernel", 90, "bfloat16", 64, 64, config=(64, 48, 4, 1))
    assert "error" in compiler.resources(too_much)  # tiles have powers of two
    assert compiler.candidates(Request("forward_kernel", 90, "bfloat16", 64, 64))
