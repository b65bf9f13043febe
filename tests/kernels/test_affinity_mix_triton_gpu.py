"""affinity_mix on Triton, what only a GPU shows: every configuration, streams, graphs, far offsets, repeated runs."""

import os
import sys

import pytest
import test_affinity_mix as plain
import torch
from glomo_kernels import affinity_mix, dispatch
from glomo_kernels.affinity_mix import triton_configs, triton_impl
from kernel_oracle import leaves, upstream
from triton_cases import check, on_device, pytest_generate_tests
from triton_here import DEVICE, anywhere, assert_the_same_in_a_cuda_graph

__all__ = ["on_device", "pytest_generate_tests"]  # for conftest.py and pytest: see there


def gpu_inputs(units=300, dtype=torch.bfloat16, heads=4, width=64, values=64):
    q, k, v, theta = plain.make(units, heads=heads, width=width, values=values)
    return [x.to(DEVICE, dtype).requires_grad_() for x in (q * width**-0.5, k, v, theta)]


@pytest.mark.gpu
@pytest.mark.parametrize("widths", [(256, 64), (128, 128)])
def test_same_bits_on_every_run(widths, dtype):
    inputs = gpu_inputs(704, dtype, width=widths[0], values=widths[1])
    runs = []
    for _ in range(20):
        out = affinity_mix(*inputs)
        runs.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["forward", "query", "key"])
@pytest.mark.parametrize("widths", [(256, 64), (128, 128), (64, 64), (32, 16), (256, 256)])
def test_every_configuration(widths, name, dtype, monkeypatch):
    inputs = plain.make(200, heads=1, width=widths[0], values=widths[1])
    inputs[0].mul_(widths[0] ** -0.5)
    case = triton_impl._case(*(x.to(DEVICE, dtype) for x in inputs[:3]), "relu")
    for config in getattr(triton_configs, name)(case):
        with monkeypatch.context() as patch:
            patch.setattr(triton_configs, name, lambda _, config=config: [config])
            check(inputs, dtype, True, {"lengths": torch.tensor([200, 130, 0])})


@pytest.mark.gpu
def test_autotuned(dtype):
    """Outside of deterministic mode the best candidate is found by time."""
    torch.use_deterministic_algorithms(False)
    check(
        plain.make(200, heads=1, width=64, values=64), dtype, True, {"lengths": torch.tensor([200, 130, 0])}
    )


@pytest.mark.gpu
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_descriptors_of_views(half):
    """Heads beside each other, and parts of one tensor: steps along T and H of which neither divides the other."""
    q, k, v, theta = (x.detach() for x in gpu_inputs(300, half))
    beside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    parts = torch.cat([q, k, v], -1).split(64, -1)
    assert not any(x.is_contiguous() for x in (*beside, *parts))
    results = []
    for tensors in ((q, k, v), beside, parts):
        inputs = [x.detach().requires_grad_() for x in tensors]
        out = affinity_mix(*inputs, theta)
        results.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.gpu
def test_autocast_does_not_reach_inside():
    inputs = gpu_inputs(dtype=torch.float32)
    expected = affinity_mix(*inputs)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(affinity_mix(*inputs), expected)


@pytest.mark.gpu
def test_on_a_stream_of_its_own():
    """Launches follow torch's current stream; results and gradients are those of the default one."""
    inputs = gpu_inputs(400)
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            out = affinity_mix(*inputs)
            results.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.multi_gpu
def test_on_the_second_device():
    inputs = [x.detach() for x in gpu_inputs()]
    expected = affinity_mix(*inputs)
    assert torch.cuda.current_device() == 0
    assert torch.equal(affinity_mix(*(x.to("cuda:1") for x in inputs)).cpu(), expected.cpu())


@pytest.mark.gpu
def test_compiles_as_one_graph():
    torch.use_deterministic_algorithms(False)
    inputs = gpu_inputs()

    def step(q, k, v, theta):
        mixed, stats = affinity_mix(q * 1, k, v, theta, return_stats=True)
        return mixed * 2, stats.edges

    eager, edges = step(*inputs)
    out, compiled_edges = torch.compile(step, fullgraph=True)(*inputs)
    torch.testing.assert_close(out, eager)
    assert torch.equal(edges, compiled_edges)
    grad = torch.ones_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(eager, inputs, grad)
    )


@pytest.mark.gpu
def test_runs_in_a_cuda_graph():
    torch.use_deterministic_algorithms(False)
    inputs = gpu_inputs()

    def step():
        out = affinity_mix(*inputs)
        return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    assert_the_same_in_a_cuda_graph(step)


def assert_near_the_reference(inputs):
    """Against the reference backend in float64, where the tensors are. Rows with little weight have slopes of 100 and
    more, so float32 is off by more than its roundings: by what it is in the reference."""
    results = []
    backend = os.environ[dispatch.VARIABLE]
    for name, dtype in (
        (backend, inputs[0].dtype),
        ("reference", inputs[0].dtype),
        ("reference", torch.float64),
    ):
        os.environ[dispatch.VARIABLE] = name  # the fixture restores it
        used = leaves(*inputs, dtype=dtype)
        out = affinity_mix(*used)
        given = upstream(out.to(inputs[0].dtype)).to(out)
        results.append([out, *torch.autograd.grad(out, used, given)])
    for name, got, plain_one, exact in zip(("mixed", "dq", "dk", "dv", "dtheta"), *results, strict=True):
        error, base = ((x.double() - exact).abs().max().item() for x in (got, plain_one))
        bound = max(4 * base, 8 * torch.finfo(got.dtype).eps * max(1.0, exact.abs().max().item()))
        assert error <= bound, f"{name}: error {error:.2e}, bound {bound:.2e}"


@pytest.mark.gpu
def test_gradients_agree_with_the_reference_at_full_size(dtype):
    """The paper's widths, T 1000."""
    assert_near_the_reference(gpu_inputs(1000, dtype, heads=2, width=256, values=64))


@anywhere
def test_float32_on_a_cpu_is_as_near(monkeypatch):
    """The bound is one that a right kernel can keep."""
    monkeypatch.setenv(dispatch.VARIABLE, "cpp")
    monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cpu")
    assert_near_the_reference(gpu_inputs(500, torch.float32, heads=2, width=256, values=64))
