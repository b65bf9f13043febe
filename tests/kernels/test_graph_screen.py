"""Scores of affinity_graph that are looked at with rounded rows first (kernels/csrc/screen.h), as those of
affinity_mix in test_screen.py, on processors that have the instructions. Elsewhere all are computed in float32."""

import pytest
import test_affinity_graph as graphs
import torch
from glomo_kernels import affinity_graph
from kernel_oracle import SPANS, gradients, leaves, spans_of
from test_screen import DENSITIES, inputs_of

pytestmark = [
    pytest.mark.usefixtures("nan_memory", "backend"),
    pytest.mark.parametrize("backend", ["cpp"], indirect=True),
]


def without_values(*arguments, **options):
    q, k, _, theta = inputs_of(*arguments, **options)
    return q, k, theta


@pytest.mark.parametrize("keep,renormalise", graphs.KEEPS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("units", [1, 65, 200])
@pytest.mark.parametrize("width", [64, 101, 256])
@pytest.mark.parametrize("above", DENSITIES)
def test_agrees_with_dense_formula(above, width, units, causal, keep, renormalise):
    options = {"lengths": torch.tensor([units, 0, (units + 1) // 2]), "causal": causal}
    inputs = without_values(units, width, above=DENSITIES[above])
    graphs.compare(graphs.both(inputs, torch.float32, True, options, keep, renormalise))


@pytest.mark.parametrize("above", [-3.0, 0.5, 2.0])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
def test_tiles_of_all_densities_side_by_side(above, causal):
    """Whole tiles live, dead and in between; every edge, and no other."""
    q, k, theta = without_values(500, above=above)
    q, k = q + 0.25, k + (torch.arange(500) // 50 - 5)[:, None] / 4
    inputs = [x.float() for x in (q, k, theta)]
    graph = affinity_graph(*inputs, causal=causal)
    scores = q @ k.mT - theta[..., None]  # exact, in float32 too
    edge = (scores > 0) & (torch.ones(500, 500, dtype=torch.bool).tril(-1) if causal else torch.tensor(True))
    assert torch.equal(graph.dense() > 0, edge)
    graphs.compare(graphs.both((q, k, theta), torch.float32, True, {"causal": causal}, None, True))


@pytest.mark.parametrize("option", [option for option in SPANS if "position" not in option])
def test_spans(option):
    rows, where = spans_of(option, 250)
    assert rows is None
    graphs.compare(graphs.both(without_values(250, above=1.5), torch.float32, True, where, None, True))


def test_without_theta():
    graphs.compare(graphs.both(without_values(250), torch.float32, False, {}, None, True))


@pytest.mark.parametrize("above", [0.0, 1.28, 2.5])
def test_any_number_of_threads_gives_the_same_bits(above):
    q, k, theta = leaves(*without_values(300, heads=5, above=above), dtype=torch.float32)
    results = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        graph = affinity_graph(q, k, theta, lengths=torch.tensor([300, 70, 299]))
        results.append([graph.columns, graph.weights, *gradients(graph.weights, [q, k, theta])])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_score_that_is_nan_is_no_edge_and_harms_no_other_row(bad):
    q, k, theta = (x.float() for x in without_values(150, above=2.0))
    whole = affinity_graph(q, k, theta).dense()
    q[1, 0, 70, 3] = bad
    graph = affinity_graph(q, k, theta)
    others = torch.ones(q.shape[:3], dtype=torch.bool)
    others[1, 0, 70] = False
    assert torch.equal(graph.dense()[others], whole[others])
