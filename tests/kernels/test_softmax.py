"""Kind "softmax" of affinity_mix as it runs without a forced backend: through PyTorch's own attention."""

import pytest
import torch
from glomo_kernels import affinity_graph, affinity_mix
from glomo_kernels.affinity_mix import softmax
from kernel_oracle import assert_no_worse, dense_weights, gradients, leaves, upstream

SPANS = {
    "causal": {},
    "causal, padded": {"lengths": True},
    "both sides": {"causal": False},
    "both sides, padded": {"causal": False, "lengths": True},
    "packed": {"segments": True},
    "packed, both sides, padded": {"segments": True, "causal": False, "lengths": True},
    "positions": {"positions": True, "lengths": True},
}


def options(case, units):
    chosen = {"kind": "softmax", **SPANS[case]}
    if "lengths" in chosen:
        chosen["lengths"] = torch.tensor([units, units // 2, 0])
    if "segments" in chosen:
        chosen["segments"] = (torch.arange(units) // 5).expand(3, units)
    if "positions" in chosen:
        chosen["positions"] = torch.tensor([units - 1, 0, units // 3])
    return chosen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width,values", [(8, 8), (12, 5), (5, 12)])
@pytest.mark.parametrize("units", [1, 2, 37])
@pytest.mark.parametrize("case", SPANS)
def test_agrees_with_dense_formula(case, units, width, values, dtype):
    chosen = options(case, units)
    rows = 3 if "positions" in chosen else units
    inputs = [
        torch.randn(3, 2, n, w, dtype=dtype) for n, w in ((rows, width), (units, width), (units, values))
    ]
    results = []
    for function, used in ((affinity_mix, dtype), (None, torch.float64), (None, dtype)):
        q, k, v = leaves(*inputs, dtype=used)
        out = function(q, k, v, **chosen) if function else dense_weights(q, k, **chosen) @ v
        results.append([out, *gradients(out, [q, k, v])])
    # of the slopes (dO_i . v_j - D_i) k_j, which cancel in a row with one key
    q, k, v = (x.detach().abs() for x in (q, k, v))
    terms = float((upstream(out).abs() @ v.mT).max() * max(q.max(), k.max())) * width**-0.5
    for name, got, exact, naive in zip(("mixed", "dq", "dk", "dv"), *results, strict=True):
        assert torch.isfinite(got).all()
        # PyTorch's fused kernel is less exact than its dense products: up to 7 times was seen, for dq in float32
        assert_no_worse(name, got, exact, naive, factor=10, terms=max(1.0, terms))


@pytest.mark.parametrize("stats", [False, True])
def test_without_width_all_scores_are_zero(stats):
    inputs = leaves(*(torch.randn(2, 2, 4, n) for n in (0, 0, 3)), dtype=torch.float32)
    out = affinity_mix(*inputs, kind="softmax", causal=False, return_stats=stats)
    mixed = out[0] if stats else out
    torch.testing.assert_close(mixed, inputs[2].mean(2, keepdim=True).expand_as(mixed))
    assert [x.shape[3] for x in gradients(mixed, inputs)] == [0, 0, 3]
    weights = affinity_graph(*inputs[:2], kind="softmax", causal=False).weights
    torch.testing.assert_close(weights, torch.full((2 * 2 * 4 * 4,), 0.25))
    assert weights.requires_grad and gradients(weights, inputs[:2])[0].shape == inputs[0].shape


@pytest.mark.parametrize("case", SPANS)
def test_a_nan_in_q_spoils_its_row_alone(case):
    """For few keys PyTorch's fused kernel gives 0."""
    chosen = options(case, 5)
    q, k, v = (torch.randn(3, 2, n, 4) for n in (3 if "positions" in chosen else 5, 5, 5))
    expected = affinity_mix(q, k, v, **chosen)
    q[0, 1, 2, 3] = torch.nan
    expected[0, 1, 2] = torch.nan
    torch.testing.assert_close(affinity_mix(q, k, v, **chosen), expected, equal_nan=True)


def test_autocast_does_not_reach_inside():
    q, k, v = (torch.randn(2, 2, 9, 4) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        cast = affinity_mix(q, k, v, kind="softmax")
    assert torch.equal(cast, affinity_mix(q, k, v, kind="softmax"))


def test_a_forced_backend_and_statistics_take_our_own_way(monkeypatch):
    q, k, v = (torch.randn(2, 2, 9, 4) for _ in range(3))
    plain = affinity_mix(q, k, v, kind="softmax")
    monkeypatch.delattr(softmax, "mix")
    mixed, stats = affinity_mix(q, k, v, kind="softmax", return_stats=True)
    torch.testing.assert_close(mixed, plain)
    assert stats.edges[0, 0].tolist() == list(range(9))
    monkeypatch.setenv("GLOMO_KERNELS", "reference")
    torch.testing.assert_close(affinity_mix(q, k, v, kind="softmax"), plain)


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_large_scores_lose_nothing_by_statistics(size):
    """Each weight is exp(score - the largest): a logarithm of the sum would be rounded as coarsely as the scores."""
    q, k, v = (torch.randn(2, 2, 60, 16).round() for _ in range(3))  # exact scores
    mixed, _ = affinity_mix(q * size, k, v, kind="softmax", return_stats=True, causal=False)
    exact, plain = (
        torch.softmax((q * size).to(x) @ k.to(x).mT / 4, -1) @ v.to(x) for x in (torch.float64, torch.float32)
    )
    assert_no_worse("mixed", mixed, exact, plain)


def test_compiles_as_one_graph():
    q, k, v = leaves(*(torch.randn(2, 2, 9, 4) for _ in range(3)), dtype=torch.float32)
    lengths = torch.tensor([9, 4])

    def step(q, k, v):
        return affinity_mix(q * 1, k, v, kind="softmax", lengths=lengths) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(q, k, v)
    torch.testing.assert_close(compiled, step(q, k, v))
    torch.testing.assert_close(gradients(compiled, [q, k, v]), gradients(step(q, k, v), [q, k, v]))
