"""affinity_graph and graph_mix in CUDA: what only a GPU shows, streams, graphs, compiling and sizes past 2^31."""

import pytest
import test_affinity_graph as graph_cases
import test_graph_mix as mix_cases
import torch
from glomo_kernels import SparseGraph, affinity_graph, graph_mix
from kernel_oracle import gradients, leaves

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.gpu
def test_edges_outside_of_the_features_are_nan_not_a_crash():
    graph = mix_cases.sparse(mix_cases.make(5).float()).to("cuda")
    out = graph_mix(
        graph._replace(columns=graph.columns + 5), torch.ones(4).cuda(), torch.zeros(3, 5, 2).cuda()
    )
    assert out.isnan().any()


@pytest.mark.gpu
def test_backward_on_another_stream():
    """Launches follow torch's current stream, and memory is not given away before they have run."""
    q, k, theta = leaves(*(x.cuda() for x in graph_cases.make(200, width=64)), dtype=torch.float32)
    expected = gradients(affinity_graph(q, k, theta).weights.cpu(), [q, k, theta])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        got = gradients(affinity_graph(q, k, theta).weights.cpu(), [q, k, theta])
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.gpu
def test_graph_mix_beyond_two_to_the_31_elements():
    """Edges to, from and between the rows at both ends of more than 2^31 features."""
    units, width, dtype = 2**21 + 3, 1024, torch.bfloat16
    rows, columns = torch.tensor([0, 1, units - 2, units - 1]), torch.tensor([units - 1, 0, 1, units - 2])
    offsets = torch.zeros(units + 1, dtype=torch.int64).index_fill(0, rows + 1, 1).cumsum(0)
    graph = SparseGraph(offsets, columns.int(), torch.tensor([1.0, 2.0, 3.0, 4.0]), (1, 1, units)).to("cuda")
    features = torch.zeros(1, units, width, dtype=dtype, device="cuda")
    ends = torch.randn(4, width, device="cuda").to(dtype)
    features[0, rows] = ends
    features.requires_grad_()
    out = graph_mix(graph, torch.ones(1, device="cuda"), features)
    scale = graph.weights[:, None].to(dtype)
    assert torch.equal(out[0, rows], ends[[3, 0, 1, 2]] * scale)
    assert not out[0, 2 : units - 2].any()
    upstream = torch.zeros_like(out)
    upstream[0, rows] = ends
    (gradient,) = torch.autograd.grad(out, features, upstream)
    assert torch.equal(gradient[0, columns], ends * scale)


@pytest.mark.gpu
def test_affinity_graph_beyond_two_to_the_31_elements():
    """The last samples of a batch of more than 2^31 numbers: as if they were alone."""
    batch, units, width = 2**18 + 2, 128, 64
    q = torch.zeros(batch, 1, units, width, dtype=torch.float16, device="cuda")
    k = torch.zeros_like(q)
    q[-2:], k[-2:] = torch.randn_like(q[-2:]), torch.randn_like(k[-2:])
    graph, alone = affinity_graph(q, k, keep=5), affinity_graph(q[-2:], k[-2:], keep=5)
    assert torch.equal(graph.columns, alone.columns) and torch.equal(graph.weights, alone.weights)
    assert torch.equal(graph.offsets[-2 * units - 1 :], alone.offsets)


@pytest.mark.gpu
def test_autocast_does_not_reach_inside():
    q, k, theta = (x.float().cuda() for x in graph_cases.make(90))
    graph = affinity_graph(q, k, theta)
    features, weights = torch.randn(3, 90, 8, device="cuda"), torch.rand(2, device="cuda")
    mixed = graph_mix(graph, weights, features)
    with torch.autocast("cuda", torch.bfloat16):
        again = affinity_graph(q, k, theta)
        mixed_again = graph_mix(graph, weights, features)
    assert torch.equal(graph.columns, again.columns) and torch.equal(graph.weights, again.weights)
    assert mixed_again.dtype == mixed.dtype and torch.equal(mixed, mixed_again)


def mixing(units=90):
    """A step of graph_mix with its gradients, and what it needs: (function, inputs)."""
    graph = mix_cases.sparse(mix_cases.make(units).float()).to("cuda")
    inputs = leaves(torch.randn(4).cuda(), torch.randn(3, units, 40).cuda(), dtype=torch.float32)

    def step(weights, features):
        return graph_mix(graph, weights.softmax(0), features * 1, heads=None) * 2

    return step, inputs


@pytest.mark.gpu
def test_graph_mix_compiles_as_one_graph():
    torch.use_deterministic_algorithms(False)
    step, inputs = mixing()
    eager, out = step(*inputs), torch.compile(step, fullgraph=True)(*inputs)
    torch.testing.assert_close(out, eager)
    grad = torch.randn_like(out)
    results = [torch.autograd.grad(x, inputs, grad) for x in (out, eager)]
    torch.testing.assert_close(*results)


@pytest.mark.gpu
def test_graph_mix_runs_in_a_cuda_graph():
    """Forward and backward wait for nothing, so they can be captured; the replay computes from the inputs anew."""
    torch.use_deterministic_algorithms(False)
    step, inputs = mixing()

    def whole():
        out = step(*inputs)
        return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            whole()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = whole()
    with torch.no_grad():
        for x in inputs:
            x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for got, expected in zip(results, whole(), strict=True):
        torch.testing.assert_close(got, expected)
