"""The long sums of graph_mix: as exact as PyTorch's, and the same for every number of threads."""

import pytest
import torch
from glomo_kernels import SparseGraph, graph_mix
from kernel_oracle import assert_no_worse, assert_no_worse_on_the_whole, gradients, leaves
from test_graph_mix import OP, both, compare, make, sparse, weights_of

__all__ = ["OP"]  # for conftest.py: see there
pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_terms_with_products_are_added_in_float32(backend, dtype):
    """Of identity graphs every term is w_c h: in half precision 256 + 1 is 256, and 60,000 + 60,000 infinite."""
    eye = sparse(torch.eye(5).expand(1, 3, 5, 5))
    size = 60_000.0 if dtype == torch.float16 else 1.0
    h = torch.full((1, 5, 2), size, dtype=dtype)
    w = torch.tensor([1.0, 1, -1, 1, -1]) if dtype == torch.float16 else torch.tensor([256.0, 1, 1, 1, 1])
    for weights in (w, w.expand(1, 5, 5)):
        out = graph_mix(eye, weights, h, heads=1)
        assert out.dtype == dtype and (out == w.sum() * size).all()


@pytest.mark.parametrize(
    "threads", [2, 3, 5]
)  # of three samples: each with a thread of its own, or shared by several
def test_same_result_for_every_number_of_threads(backend, threads):
    graph = sparse(make(70, components=4).float())
    w, w_one, h = leaves(
        torch.randn(3, 70, 6), torch.randn(3, 70, 7), torch.randn(3, 70, 100), dtype=torch.float32
    )
    w_all = torch.randn(7, requires_grad=True)
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results.append([])
        for heads, terms in ((2, w), (1, w_one), (1, w_all)):
            out = graph_mix(graph, terms, h, heads=heads)
            results[-1] += [out, *gradients(out, [terms, h])]
    for one, many in zip(*results, strict=True):
        if backend == "reference":  # torch's own matrix products decide
            torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(one, many)


@pytest.mark.parametrize(("units", "count"), [(70_001, 1), (300_001, 1), (4096, 1), (5000, 3)])
def test_one_weight_for_all_has_the_same_gradient_for_every_number_of_threads(units, count):
    """A long sum to one number, which torch divides among its threads."""
    at = torch.arange(units * count + 1)
    columns = torch.arange(units, dtype=torch.int32).repeat(count)
    graph = SparseGraph(at, columns, torch.rand(units * count), (1, count, units))
    h = torch.randn(1, units, 2)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        w = torch.ones(count, requires_grad=True)
        results += torch.autograd.grad(graph_mix(graph, w, h).square().sum(), w)
    assert all(torch.equal(results[0], other) for other in results[1:])
    parts = graph.weights.view(count, units, 1).double() * h[0].double()
    exact = 2 * (parts.sum(0) * parts).sum((1, 2))
    torch.testing.assert_close(results[0].double(), exact, rtol=1e-5, atol=1e-5)


def test_one_weight_for_all_of_products_has_the_same_gradient_for_every_number_of_threads():
    units = 70_001
    columns = torch.arange(units, dtype=torch.int32).repeat(2)
    graph = SparseGraph(torch.arange(2 * units + 1), columns, torch.rand(2 * units), (1, 2, units))
    h, results = torch.randn(1, units, 2), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        w = torch.ones(3, requires_grad=True)
        results += torch.autograd.grad(graph_mix(graph, w, h, heads=1).square().sum(), w)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("offset", [0, 3])
def test_shared_weights_of_products_are_added_up_in_parts(backend, offset):
    """The gradient of one number for all units is a sum over all of them. Those of several draws together: with an
    offset, that of a product is nearly all the rounding of a few sums, which may be small by chance."""
    d_weights = []
    for _ in range(4):
        features = torch.randn(3, 150, 100, dtype=torch.float64) + offset
        results = both(make(150), weights_of(False, 3, 150, 6), features, torch.float32, heads=2)
        for name, which in (("mixed", 0), ("dfeatures", 2)):
            assert_no_worse(name, *(result[which] for result in results))
        d_weights.append([result[1] for result in results])
    assert_no_worse_on_the_whole("dweights", *map(torch.cat, zip(*d_weights, strict=True)))


@pytest.mark.parametrize("width", [5, 150])
@pytest.mark.parametrize("density", [0.002, 0.02, 0.3])
@pytest.mark.parametrize("per_unit", [True, False])
def test_few_edges_and_many(backend, density, width, per_unit):
    """Several stripes of rows, on both sides of the number of edges from which the sum is treated as dense."""
    dense = make(150, density=density)
    features = torch.randn(3, 150, width, dtype=torch.float64)
    compare(both(dense, weights_of(per_unit, 3, 150, 4), features, torch.float32))


@pytest.mark.parametrize("density", [0.002, 0.3])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, density):
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    graph = sparse(make(150, density=density, batch=2).float())
    inputs = leaves(weights_of(True, 2, 150, 4), torch.randn(2, 150, 201), dtype=torch.float32)
    runs = []
    for threads in (1, 2, 3, 8, 8):
        torch.set_num_threads(threads)
        out = graph_mix(graph, *inputs)
        runs.append([out.detach(), *gradients(out, inputs)])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("density", [0.24, 0.9], ids=["single edges", "nearly dense"])
@pytest.mark.parametrize(
    "width", [16, 3, 19, 131]
)  # whole registers, less than one, parts of one; of several blocks
def test_rows_of_hundreds_of_edges(monkeypatch, width, density, offset):
    """Sums of sums: added up one after the other, so many terms miss twice PyTorch's error up to ten times."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    units = 1500
    dense = make(units, components=2, density=density, batch=1)
    features = torch.randn(1, units, width, dtype=torch.float64) + offset
    results = both(dense, weights_of(True, 1, units, 2), features, torch.float32, offset=offset)
    for name, *numbers in zip(("mixed", "dweights", "dfeatures"), *results, strict=True):
        assert_no_worse_on_the_whole(name, *numbers)
