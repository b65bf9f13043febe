"""The compiled backends against the dense formulas on inputs that hypothesis makes up."""

import pytest
import torch
from glomo_kernels import affinity_graph, affinity_mix, dispatch, graph_mix
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_oracle import assert_no_worse, dense_weights, gradients, leaves

often = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
sizes = st.sampled_from([0.01, 1.0, 30.0])


@pytest.fixture(autouse=True)
def compiled_backend(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "cpp")


@st.composite
def problems(draw):
    """(q, k, v, theta, options) in float64; any sizes, spans and layouts."""
    batch, heads = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    units = draw(st.integers(1, 140))
    width, values = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    size = draw(sizes)
    options = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        options["lengths"] = torch.randint(0, units + 1, (batch,))
    if draw(st.booleans()):
        options["segments"] = torch.randint(0, 2, (batch, units)).cumsum(1)
    kind = draw(st.sampled_from(["relu", "threshold", "square", "topk"]))
    options["kind"] = "relu" if kind == "threshold" else kind
    if kind == "topk":
        options["topk"] = draw(st.integers(1, units + 2))
    tensors = [torch.randn(batch, units, heads, n).double().transpose(1, 2) for n in (width, width, values)]
    if draw(st.booleans()):
        tensors = [x.contiguous() for x in tensors]
    q, k, v = tensors
    theta = torch.randn(batch, heads, units).double() * size**2 * width**0.5 if kind == "threshold" else None
    return q * size, k * size, v, theta, options


@often
@given(problems())
def test_affinity_mix(problem):
    q, k, v, theta, options = problem
    results = []
    # topk in float64: a rounding may make another key the largest
    dtype = torch.float64 if "topk" in options else torch.float32
    inputs = leaves(*(x for x in (q, k, v, theta) if x is not None), dtype=dtype)
    for ours, used in ((True, dtype), (False, torch.float64), (False, dtype)):
        tensors = leaves(*inputs, dtype=used)
        q, k, v, bias = (*tensors, None)[:4]
        if ours:
            out, stats = affinity_mix(q, k, v, bias, **options, return_stats=True)
        else:
            weights = dense_weights(q, k, bias, **options)
            out = weights @ v
        results.append([out, *gradients(out, tensors)])
    for name, got, exact, naive in zip(("mixed", "dq", "dk", "dv", "dtheta"), *results, strict=False):
        # a few numbers only, some of which cancel: the largest error of them is a matter of luck
        assert_no_worse(name, got, exact, naive, factor=8)
    assert torch.equal(stats.edges > 0, stats.row_sum > 0)
    assert (results[0][0][stats.edges == 0] == 0).all()


@often
@given(problems(), st.integers(0, 9), st.booleans())
def test_affinity_graph(problem, keep, renormalise):
    q, k, _, theta, options = problem
    graph = affinity_graph(q, k, theta, **options, keep=keep or None, renormalise=renormalise)
    dense = dense_weights(q, k, theta, **options, keep=keep or None, renormalise=renormalise)
    torch.testing.assert_close(graph.dense(), dense, rtol=1e-9, atol=1e-12)
    assert (graph.weights > 0).all()


@often
@given(problems(), st.integers(1, 33), st.booleans())
def test_graph_mix(problem, width, per_unit):
    q, k, _, theta, options = problem
    graph = affinity_graph(q, k, theta, **options)
    batch, heads, units, _ = q.shape
    weights = torch.randn(
        *((batch, units) if per_unit else ()), heads, dtype=torch.float64, requires_grad=True
    )
    features = torch.randn(batch, units, width, dtype=torch.float64, requires_grad=True)
    ours = graph_mix(graph, weights, features)
    expanded = weights.expand(batch, units, heads)
    plain = torch.einsum("bic,bcij,bjd->bid", expanded, graph.dense(), features)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    inputs = [weights, features]
    torch.testing.assert_close(gradients(ours, inputs), gradients(plain, inputs), rtol=1e-9, atol=1e-9)
