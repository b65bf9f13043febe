"""The arguments of graph_mix and graph_apply: what is refused by name, damaged graphs too."""

import pytest
import torch
from glomo_kernels import SparseGraph, graph_apply, graph_mix
from test_graph_mix import OP, make, sparse

__all__ = ["OP"]  # for conftest.py: see there
pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize(
    "change,message",
    [
        ({"features": torch.zeros(3, 4, 2)}, r"features must be \(3, 5, 'D'\).* got \(3, 4, 2\)"),
        ({"features": torch.zeros(2, 5, 2)}, r"features must be \(3, 5, 'D'\).* got \(2, 5, 2\)"),
        ({"features": torch.zeros(3, 5)}, r"features must be \(3, 5, 'D'\).* got \(3, 5\)"),
        ({"features": torch.zeros(3, 5, 2, dtype=torch.int64)}, "features must be floating point"),
        ({"features": torch.zeros(3, 5, 2, device="meta")}, "features must be .* on cpu .* on meta"),
        ({"weights": torch.zeros(3)}, r"weights must be \(4,\) or \(3, 5, 4\).* got \(3,\)"),
        ({"weights": torch.zeros(3, 1, 4)}, r"weights must be \(4,\) or \(3, 5, 4\).* got \(3, 1, 4\)"),
        ({"weights": torch.zeros(4).long()}, "weights must be floating point .* got torch.int64 on cpu"),
        ({"weights": torch.zeros(4), "heads": 2}, r"weights must be \(6,\) or \(3, 5, 6\)"),
        (
            {
                "graph": SparseGraph(torch.zeros(1).long(), torch.zeros(0).int(), torch.zeros(0), (3, 0, 5)),
                "heads": 2,
            },
            "heads must divide the 0 components of the graph, got 2",
        ),
        *(
            ({"heads": wrong}, f"heads must divide the 4 components of the graph, got {wrong}")
            for wrong in (3, 0, -2)
        ),
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
        (lambda g: g._replace(offsets=g.offsets.clamp(min=1)), "graph.offsets must rise from 0"),
        (
            lambda g: g._replace(offsets=g.offsets.clamp(max=g.offsets[-1] - 1)),
            "graph.offsets must rise from 0",
        ),
        *(
            (
                lambda g, at=at, to=to: g._replace(offsets=g.offsets.index_fill(0, torch.tensor([at]), to)),
                rf"graph\.offsets must rise from 0 to the number of edges .*, falling within row {row}$",
            )
            for at, to, row in ((9, 99, 9), (1, -1, 0), (59, 99, 59))
        ),
        (lambda g: g._replace(columns=g.columns.long()), "graph.columns must be int32"),
        (
            lambda g: g._replace(columns=g.columns[1:]),
            "graph.columns must be int32 of the shape of graph.weigh",
        ),
        (lambda g: g._replace(weights=list(g.weights)), "graph.weights must be a tensor, got list"),
        (
            lambda g: g._replace(weights=g.weights[:, None], columns=g.columns[:, None]),
            r"graph.weights must be .* of one dimension, got torch.float32 \(\d+, 1\)",
        ),
        (lambda g: g._replace(offsets=g.offsets.to("meta")), "graph.offsets must be on cpu .* got meta"),
        (lambda g: g._replace(columns=g.columns.numpy()), "graph.columns must be a tensor, got ndarray"),
        (
            lambda g: g._replace(weights=g.weights.int()),
            r"graph.weights must be floating point \(float16, bfloat16, float32 or float64\) of one dimension",
        ),
        (lambda g: g._replace(shape=(3, 20)), r"graph.shape must be \(B, C, T\), got \(3, 20\)"),
        (lambda g: g._replace(shape=None), r"graph.shape must be \(B, C, T\), got None"),
        (lambda g: g._replace(shape=(3, 4, 5.0)), r"graph.shape must be whole numbers from 0 on, got 5\.0"),
        (lambda g: g._replace(shape=(-3, -4, 5)), "graph.shape must be whole numbers from 0 on, got -3"),
        (lambda g: g._replace(columns=g.columns + 1), r"graph.columns must lie in 0..4, got 1..5"),
        (lambda g: g._replace(columns=g.columns - 1), r"graph.columns must lie in 0..4, got -1..3"),
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


def test_a_graph_that_requires_a_gradient_is_taken_where_there_are_none():
    graph = sparse(make(5).float())
    w, h = torch.ones(4), torch.ones(3, 5, 2)
    with torch.no_grad():
        learned = graph._replace(weights=graph.weights.clone().requires_grad_())
        assert torch.equal(graph_mix(learned, w, h), graph_mix(graph, w, h))


def test_columns_elsewhere_are_refused():
    graph = sparse(make(5).float())
    with pytest.raises(
        ValueError, match=r"graph_mix: graph\.columns must be on cpu like graph\.weights, got meta"
    ):
        graph_mix(graph._replace(columns=graph.columns.to("meta")), torch.zeros(4), torch.zeros(3, 5, 2))


def test_a_graph_has_no_dtype_of_its_own():
    graph = sparse(make(5).float())
    *tensors, shape = graph.to("meta")
    assert all(x.is_meta for x in tensors) and shape == graph.shape
    with pytest.raises(
        TypeError, match=r"SparseGraph\.to takes a device, got torch\.float16: offsets and columns"
    ):
        graph.to(torch.float16)


def test_graph_apply_names_wrong_components():
    graph = sparse(make(5).float())
    with pytest.raises(ValueError, match=r"components 3\.\.4 are not all in 0\.\.3"):
        graph_apply(graph, torch.zeros(3, 2, 5, 2), first=3)
    with pytest.raises(ValueError, match=r"components -1\.\.0 are not all in 0\.\.3"):
        graph_apply(graph, torch.zeros(3, 2, 5, 2), first=-1)
    with pytest.raises(ValueError, match="graph_apply: features must be a tensor, got list"):
        graph_apply(graph, [0.5])
    for first in (1.0, "1", 2**64, True):
        with pytest.raises(ValueError, match=f"graph_apply: first must be a whole number, got {first!r}"):
            graph_apply(graph, torch.zeros(3, 2, 5, 2), first=first)
    with pytest.raises(ValueError, match="graph_apply: features must be floating point"):
        graph_apply(graph, torch.zeros(3, 1, 5, 2, dtype=torch.int64))
    for shape in ((3, 5, 2), (3, 2, 4, 2), (3, 2, 6, 2), (2, 2, 5, 2)):
        with pytest.raises(ValueError, match=r"features must be \(3, 'K', 5, 'D'\)"):
            graph_apply(graph, torch.zeros(shape))


def test_a_graph_that_requires_a_gradient_is_taken_where_none_is_made():
    graph, weights, features = sparse(make(5).float()), torch.rand(4), torch.rand(3, 5, 2)
    expected = graph_mix(graph, weights, features)
    graph.weights.requires_grad_()
    with torch.no_grad():
        assert torch.equal(graph_mix(graph, weights, features), expected)
