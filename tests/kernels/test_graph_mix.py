import pytest
import torch
from glomo_kernels import SparseGraph, graph_apply, graph_mix
from glomo_kernels.graph_mix import _apply, _mix
from kernel_oracle import assert_no_worse, gradients, leaves, products, upstream

OP = "graph_mix"
pytestmark = pytest.mark.usefixtures("nan_memory")


def sparse(dense):
    """A SparseGraph of the positive entries of dense [B, C, T, T]."""
    b, c, t, _ = dense.shape
    rows = dense.reshape(b * c * t, t)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (rows > 0).sum(1).cumsum(0)])
    return SparseGraph(offsets, rows.nonzero()[:, 1].int(), rows[rows > 0], (b, c, t))


def make(units, components=4, density=0.3, batch=3):
    """A dense [B, C, T, T] with empty rows, a component and a sample without an edge."""
    dense = torch.rand(batch, components, units, units, dtype=torch.float64)
    dense = dense * (torch.rand_like(dense) < density)
    dense[:, -1] = 0
    if batch > 1:
        dense[1] = 0
    return dense


def weights_of(per_unit, batch, units, terms):
    return torch.randn((batch, units, terms) if per_unit else (terms,), dtype=torch.float64)


def both(dense, weights, features, dtype, heads=None, offset=0):
    """Result and gradients: of the op in `dtype`, of einsum over dense graphs in float64 and in `dtype`."""
    graph32 = sparse(dense.float()) if dtype != torch.float64 else sparse(dense)
    dense = graph32.dense()
    results = []
    for ours, used in ((True, dtype), (False, torch.float64), (False, dtype)):
        w, h = leaves(*leaves(weights, features, dtype=dtype), dtype=used)
        if ours:
            out = graph_mix(graph32, w, h, heads=heads)
        else:
            graphs = dense.to(used)
            terms = graphs if heads is None else products(graphs, heads)
            out = torch.einsum("...c,bcij,bjd->bid" if w.ndim == 1 else "bic,bcij,bjd->bid", w, terms, h)
        results.append([out, *torch.autograd.grad(out, [w, h], upstream(out) + offset)])
    return results


def compare(results):
    for name, got, exact, naive in zip(("mixed", "dweights", "dfeatures"), *results, strict=True):
        assert_no_worse(name, got, exact, naive)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("units,width", [(1, 1), (2, 3), (63, 7), (40, 64), (33, 300)])
def test_agrees_with_dense_formula(backend, units, width, per_unit, dtype):
    dense = make(units)
    features = torch.randn(3, units, width, dtype=torch.float64)
    compare(both(dense, weights_of(per_unit, 3, units, 4), features, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("layers,heads", [(1, 3), (2, 1), (2, 2), (3, 2)])
def test_products_agree_with_formed_products(backend, layers, heads, per_unit, dtype):
    dense = make(21, components=layers * heads)
    if layers * heads > 1:
        dense[0, -1] = torch.rand(21, 21, dtype=torch.float64)
    weights = weights_of(per_unit, 3, 21, (2 * layers - 1) * heads)
    compare(both(dense, weights, torch.randn(3, 21, 9, dtype=torch.float64), dtype, heads=heads))


@pytest.mark.parametrize("per_unit", [True, False])
def test_products_under_autocast_are_what_they_are_without(backend, per_unit):
    graph = sparse(make(21).float())
    w, h = weights_of(per_unit, 3, 21, 6).float(), torch.randn(3, 21, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = graph_mix(graph, w, h, heads=2)
    assert torch.equal(mixed, graph_mix(graph, w, h, heads=2))


@pytest.mark.parametrize("density", [0.05, 1.0])
@pytest.mark.parametrize("heads", [None, 2])
def test_features_without_width(backend, heads, density):
    graph = sparse(make(9, density=density).float())
    w, h = leaves(torch.randn(4 if heads is None else 6), torch.randn(3, 9, 0), dtype=torch.float32)
    out = graph_mix(graph, w, h, heads=heads)
    d_w, d_h = gradients(out, [w, h])
    assert out.shape == d_h.shape == h.shape and (d_w == 0).all()


@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("heads", [None, 50])
@pytest.mark.parametrize("batch,units", [(0, 3), (2, 0)])
def test_no_samples_and_no_units(backend, batch, units, heads, per_unit):
    """With many components, since one weight for all is there without a unit, too."""
    graph = sparse(torch.zeros(batch, 150, units, units))
    shape = (150,) if heads is None else (250,)
    w, h = leaves(
        torch.ones(batch, units, *shape) if per_unit else torch.ones(shape),
        torch.ones(batch, units, 3),
        dtype=torch.float32,
    )
    out = graph_mix(graph, w, h, heads=heads)
    d_w, d_h = gradients(out, [w, h])
    assert out.shape == d_h.shape == h.shape and d_w.shape == w.shape and (d_w == 0).all()


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_in_another_dtype_than_the_features(backend, dtype, heads):
    graph, features = sparse(make(9).float()), torch.randn(3, 9, 5)
    weights = torch.rand(4 if heads is None else 6).to(torch.bfloat16)
    mixed = graph_mix(graph, weights.to(dtype), features, heads=heads)
    torch.testing.assert_close(
        mixed, graph_mix(graph, weights.float(), features, heads=heads), rtol=0, atol=0
    )


def test_graph_apply(backend):
    dense = make(17, components=5)
    graph = sparse(dense)
    x = torch.randn(3, 2, 17, 6, dtype=torch.float64, requires_grad=True)
    for first in (0, 2, 3):
        out = graph_apply(graph, x, first=first)
        expected = dense[:, first : first + 2] @ x
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients(out, [x]), gradients(expected, [x]), rtol=1e-12, atol=1e-12)


def test_graph_apply_of_no_component(backend):
    graph = sparse(make(5, components=2))
    x = torch.randn(3, 0, 5, 4, dtype=torch.float64, requires_grad=True)
    out = graph_apply(graph, x, first=1)
    assert out.shape == (3, 0, 5, 4) and gradients(out, [x])[0].shape == x.shape
    none = SparseGraph(
        torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0), (1, 0, 100)
    )
    w, h = torch.zeros(0, requires_grad=True), torch.ones(1, 100, 4, requires_grad=True)
    assert [g.shape for g in gradients(graph_mix(none, w, h), [w, h])] == [w.shape, h.shape]


@pytest.mark.parametrize("heads", [None, 2, 1])
def test_only_the_wanted_gradients(backend, heads):
    graph = sparse(make(9))
    w = torch.randn({None: 4, 2: 6, 1: 7}[heads], dtype=torch.float64)
    h = torch.randn(3, 9, 5, dtype=torch.float64)
    both_wanted = gradients(graph_mix(graph, w.requires_grad_(), h.requires_grad_(), heads=heads), [w, h])
    only_w = gradients(graph_mix(graph, w, h.detach(), heads=heads), [w])
    only_h = gradients(graph_mix(graph, w.detach(), h, heads=heads), [h])
    torch.testing.assert_close([*only_w, *only_h], list(both_wanted))


def test_non_contiguous_inputs(backend):
    graph = sparse(make(12))
    w = torch.randn(3, 4, 12, dtype=torch.float64).mT
    h = torch.randn(3, 7, 12, dtype=torch.float64).mT
    graph = graph._replace(weights=torch.stack([graph.weights] * 2, -1)[:, 0])
    assert not (w.is_contiguous() or h.is_contiguous() or graph.weights.is_contiguous())
    expected = torch.einsum("bic,bcij,bjd->bid", w, graph.dense(), h)
    torch.testing.assert_close(graph_mix(graph, w, h), expected, rtol=1e-12, atol=1e-12)


def test_no_edges_at_all(backend):
    graph = sparse(torch.zeros(2, 3, 5, 5))
    w, h = torch.ones(3, requires_grad=True), torch.ones(2, 5, 4, requires_grad=True)
    out = graph_mix(graph, w, h)
    assert (out == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(out, [w, h]))


@pytest.mark.parametrize("heads", [None, 2])
def test_gradcheck(backend, heads):
    graph = sparse(make(5))
    terms = 4 if heads is None else 6
    w = torch.randn(3, 5, terms, dtype=torch.float64, requires_grad=True)
    h = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, h: graph_mix(graph, w, h, heads=heads), (w, h))


def test_second_derivative_is_refused(backend):
    graph = sparse(make(5))
    w, h = leaves(torch.randn(4), torch.randn(3, 5, 2), dtype=torch.float64)
    (dw,) = torch.autograd.grad(graph_mix(graph, w, h).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="graph_mix: second derivatives"):
        dw.sum().backward()


class TestRegistration:
    @pytest.fixture(autouse=True)
    def plain_memory(self, nan_memory):
        torch.use_deterministic_algorithms(False)

    def test_opcheck(self, backend):
        graph = sparse(make(5).float())
        edges = (graph.offsets, graph.columns, graph.weights)
        for heads, terms in ((4, 4), (2, 6)):
            w, h = leaves(torch.randn(3, 5, terms), torch.randn(3, 5, 6), dtype=torch.float32)
            torch.library.opcheck(_mix.overload, (*edges, 4, heads, w, h))
        x = torch.randn(3, 2, 5, 6, requires_grad=True)
        torch.library.opcheck(_apply.overload, (*edges, 4, 1, x))

    @pytest.mark.parametrize("heads", [None, 2])
    def test_compiles_as_one_graph(self, backend, heads):
        graph = sparse(make(8).float())
        inputs = leaves(torch.randn(4 if heads is None else 6), torch.randn(3, 8, 5), dtype=torch.float32)

        def step(w, h):
            return graph_mix(graph, w.softmax(0), h * 1, heads=heads) * 2

        eager = step(*inputs)
        out = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(out, eager)
        torch.testing.assert_close(gradients(out, inputs), gradients(eager, inputs))


def test_edges_of_one_column_are_added_up():
    graph = SparseGraph(torch.tensor([0, 0, 2]), torch.zeros(2, dtype=torch.int32), torch.ones(2), (1, 1, 2))
    features = torch.tensor([[[1.0], [5.0]]])
    torch.testing.assert_close(graph.dense()[:, 0] @ features, graph_mix(graph, torch.ones(1), features))
