import pytest
import torch
from glomo_kernels import SparseGraph, graph_apply, graph_mix
from glomo_kernels.graph_mix import _apply, _mix
from kernel_oracle import assert_no_worse, assert_no_worse_on_the_whole, gradients, leaves, products, upstream

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


def test_only_the_wanted_gradients(backend):
    graph = sparse(make(9))
    w, h = torch.randn(4, dtype=torch.float64), torch.randn(3, 9, 5, dtype=torch.float64)
    both_wanted = gradients(graph_mix(graph, w.requires_grad_(), h.requires_grad_()), [w, h])
    only_w = gradients(graph_mix(graph, w, h.detach()), [w])
    only_h = gradients(graph_mix(graph, w.detach(), h), [h])
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


@pytest.mark.parametrize("threads", [2, 5])
def test_same_result_for_every_number_of_threads(backend, threads):
    graph = sparse(make(70, components=4).float())
    w, w_one, h = leaves(
        torch.randn(3, 70, 6), torch.randn(3, 70, 7), torch.randn(3, 70, 100), dtype=torch.float32
    )
    w_all = torch.randn(7, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append([])
            for heads, terms in ((2, w), (1, w_one), (1, w_all)):
                out = graph_mix(graph, terms, h, heads=heads)
                results[-1] += [out, *gradients(out, [terms, h])]
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        if backend == "reference":  # torch's own matrix products decide
            torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(one, many)


@pytest.mark.parametrize(("units", "count"), [(70_001, 1), (4096, 1), (5000, 3)])
def test_one_weight_for_all_has_the_same_gradient_for_every_number_of_threads(units, count):
    """A long sum to one number, which torch divides among its threads."""
    at = torch.arange(units * count + 1)
    columns = torch.arange(units, dtype=torch.int32).repeat(count)
    graph = SparseGraph(at, columns, torch.rand(units * count), (1, count, units))
    h = torch.randn(1, units, 2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            w = torch.ones(count, requires_grad=True)
            results += torch.autograd.grad(graph_mix(graph, w, h).square().sum(), w)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    parts = graph.weights.view(count, units, 1).double() * h[0].double()
    exact = 2 * (parts.sum(0) * parts).sum((1, 2))
    torch.testing.assert_close(results[0].double(), exact, rtol=1e-5, atol=1e-5)


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
        w, h = leaves(torch.randn(3, 5, 2), torch.randn(3, 5, 6), dtype=torch.float32)
        torch.library.opcheck(_mix.overload, (*edges, 4, 1, w, h))
        for given in (1, 2):
            x = torch.randn(3, given, 5, 6, requires_grad=True)
            torch.library.opcheck(_apply.overload, (*edges, 4, 1, 2, x))

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


@pytest.mark.parametrize(
    "change,message",
    [
        ({"features": torch.zeros(3, 4, 2)}, r"features must be \(3, 5, 'D'\).* got \(3, 4, 2\)"),
        ({"features": torch.zeros(3, 5, 2, dtype=torch.int64)}, "features must be floating point"),
        ({"weights": torch.zeros(3)}, r"weights must be \(4,\) or \(3, 5, 4\).* got \(3,\)"),
        ({"weights": torch.zeros(4), "heads": 2}, r"weights must be \(6,\) or \(3, 5, 6\)"),
        (
            {
                "graph": SparseGraph(torch.zeros(1).long(), torch.zeros(0).int(), torch.zeros(0), (3, 0, 5)),
                "heads": 2,
            },
            "heads must divide the 0 components of the graph, got 2",
        ),
        ({"heads": 3}, "heads must divide the 4 components of the graph, got 3"),
        ({"heads": 1.0}, r"heads must be a whole number or None, got 1\.0"),
        ({"heads": "1"}, "heads must be a whole number or None, got '1'"),
        ({"weights": [0.5] * 4}, "weights must be a tensor, got list"),
        ({"graph": torch.zeros(3, 4, 5, 5)}, "graph must be a SparseGraph, got Tensor"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {"graph": sparse(make(5).float()), "weights": torch.zeros(4), "features": torch.zeros(3, 5, 2)}
    graph_mix(**good)
    with pytest.raises(ValueError, match="graph_mix: " + message):
        graph_mix(**{**good, **change})


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda g: g._replace(offsets=g.offsets[1:]), r"graph.offsets must be \(61,\), got \(60,\)"),
        (lambda g: g._replace(offsets=g.offsets + 1), "graph.offsets must rise from 0"),
        (lambda g: g._replace(columns=g.columns.long()), "graph.columns must be int32"),
        (lambda g: g._replace(columns=g.columns.numpy()), "graph.columns must be a tensor, got ndarray"),
        (
            lambda g: g._replace(weights=g.weights.int()),
            r"graph.weights must be floating point \(float16, bfloat16, float32 or float64\) of one dimension",
        ),
        (lambda g: g._replace(shape=(3, 20)), r"graph.shape must be \(B, C, T\), got \(3, 20\)"),
        (lambda g: g._replace(shape=None), r"graph.shape must be \(B, C, T\), got None"),
        (lambda g: g._replace(shape=(3, 4, 5.0)), r"graph.shape must be a whole number, got 5\.0"),
        (lambda g: g._replace(columns=g.columns + 5), r"graph.columns must lie in 0..4"),
        (lambda g: g._replace(columns=g.columns - 5), r"graph.columns must lie in 0..4"),
        (
            lambda g: g._replace(weights=g.weights.requires_grad_()),
            r"graph.weights requires a gradient.* pass graph.detach\(\)",
        ),
    ],
)
def test_damaged_graphs_are_refused(backend, change, message):
    graph = change(sparse(make(5).float()))
    with pytest.raises(ValueError, match="graph_mix: " + message):
        graph_mix(graph, torch.zeros(4), torch.zeros(3, 5, 2))
    with pytest.raises(ValueError, match="graph_apply: " + message):
        graph_apply(graph, torch.zeros(3, 2, 5, 2))


def test_columns_elsewhere_are_refused():
    graph = sparse(make(5).float())
    with pytest.raises(
        ValueError, match=r"graph_mix: graph\.columns must be on cpu like graph\.weights, got meta"
    ):
        graph_mix(graph._replace(columns=graph.columns.to("meta")), torch.zeros(4), torch.zeros(3, 5, 2))


def test_a_graph_has_no_dtype_of_its_own():
    graph = sparse(make(5).float())
    assert graph.to("meta").offsets.is_meta and graph.to("meta").shape == graph.shape
    with pytest.raises(
        TypeError, match=r"SparseGraph\.to takes a device, got torch\.float16: offsets and columns"
    ):
        graph.to(torch.float16)


def test_edges_of_one_column_are_added_up():
    graph = SparseGraph(torch.tensor([0, 0, 2]), torch.zeros(2, dtype=torch.int32), torch.ones(2), (1, 1, 2))
    features = torch.tensor([[[1.0], [5.0]]])
    torch.testing.assert_close(graph.dense()[:, 0] @ features, graph_mix(graph, torch.ones(1), features))


@pytest.mark.parametrize("offset", [0, 3])
def test_shared_weights_of_products_are_added_up_in_parts(backend, offset):
    """The gradient of one number for all units is a sum over all of them."""
    features = torch.randn(3, 150, 100, dtype=torch.float64) + offset
    compare(both(make(150), weights_of(False, 3, 150, 6), features, torch.float32, heads=2))


def test_graph_apply_names_wrong_components():
    graph = sparse(make(5).float())
    with pytest.raises(ValueError, match=r"components 3\.\.4 are not all in 0\.\.3"):
        graph_apply(graph, torch.zeros(3, 2, 5, 2), first=3)
    for first in (1.0, "1", 2**64):
        with pytest.raises(ValueError, match=f"graph_apply: first must be a whole number, got {first!r}"):
            graph_apply(graph, torch.zeros(3, 2, 5, 2), first=first)
    with pytest.raises(ValueError, match="graph_apply: features must be floating point"):
        graph_apply(graph, torch.zeros(3, 1, 5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"features must be \(3, 'K', 5, 'D'\)"):
        graph_apply(graph, torch.zeros(3, 5, 2))


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
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8, 8):
            torch.set_num_threads(threads)
            out = graph_mix(graph, *inputs)
            runs.append([out.detach(), *gradients(out, inputs)])
    finally:
        torch.set_num_threads(before)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("density", [0.24, 0.9], ids=["single edges", "nearly dense"])
def test_rows_of_hundreds_of_edges(monkeypatch, density, offset):
    """Sums of sums: added up one after the other, so many terms miss twice PyTorch's error up to ten times."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    units, width = 1500, 16
    dense = make(units, components=2, density=density, batch=1)
    features = torch.randn(1, units, width, dtype=torch.float64) + offset
    results = both(dense, weights_of(True, 1, units, 2), features, torch.float32, offset=offset)
    for name, *numbers in zip(("mixed", "dweights", "dfeatures"), *results, strict=True):
        assert_no_worse_on_the_whole(name, *numbers)
