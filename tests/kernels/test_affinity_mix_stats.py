"""What affinity_mix says of its rows: sums, edges, entropy, and which tiles have edges at all."""

import pytest
import torch
from glomo_kernels import affinity_mix, scores
from kernel_oracle import assert_nan_is_in_the_statistics, dense_weights, live_tiles
from test_affinity_mix import KINDS, OP, REFUSED, make, split

__all__ = ["OP", "REFUSED"]  # for conftest.py: see there
pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("case", ["relu", "square", "topk", "softmax"])
def test_stats_of_nothing(backend, case):
    options = {"kind": case, "topk": 2 if case == "topk" else None, "return_stats": True}
    q = torch.randn(2, 3, 0, 4)
    k = torch.randn(2, 3, 5, 4)
    mixed, stats = affinity_mix(q, k, k, positions=torch.zeros(0, dtype=torch.int64), **options)
    assert mixed.shape == (2, 3, 0, 4) and stats.row_sum.shape == (2, 3, 0)
    mixed, stats = affinity_mix(q, q, q, **options)
    assert mixed.shape == (2, 3, 0, 4) and stats.live.numel() == 0


@pytest.mark.parametrize("case", KINDS)
def test_stats(backend, case):
    with_theta, options = split(case)
    q, k, v, theta = make(9)
    options["lengths"] = torch.tensor([9, 0, 4])
    theta = theta if with_theta else None
    mixed, stats = affinity_mix(q, k, v, theta, **options, return_stats=True)
    torch.testing.assert_close(mixed, affinity_mix(q, k, v, theta, **options))
    weights = dense_weights(q, k, theta, **options)
    assert stats.edges.dtype == torch.int32
    torch.testing.assert_close(stats.edges.long(), (weights > 0).sum(-1))
    torch.testing.assert_close(stats.entropy, torch.special.entr(weights).sum(-1))
    assert ((stats.row_sum == 0) == (weights.sum(-1) == 0)).all()
    assert torch.equal(stats.live, live_tiles(weights))
    single = affinity_mix(q.float(), k.float(), v.float(), **{**options, "return_stats": True})[1]
    assert single.row_sum.dtype == torch.float32


def test_no_entropy_is_negative(backend):
    """Rows that one edge rules, and rounding."""
    torch.manual_seed(1)
    q = torch.randn(2, 2, 40, 3, dtype=torch.float64) * torch.tensor([1, 1e-5, 1])
    k = torch.cat([q[:, :, :1], q[:, :, 1:] * 1e-6], 2)
    assert affinity_mix(q, k, q, return_stats=True)[1].entropy.min() == 0


@pytest.mark.parametrize("case", ["relu", "square"])
def test_a_row_with_nan_does_not_pass_for_one_of_a_single_edge(backend, case):
    assert_nan_is_in_the_statistics(affinity_mix, *make(9)[:3], case)


@pytest.mark.parametrize("dead", [slice(64, 128), slice(20, 130)], ids=["a tile of rows", "rows of three"])
def test_live_tiles(backend, monkeypatch, dead):
    monkeypatch.setattr(scores, "TILE_ELEMENTS", 50 * 200)  # rows of the reference that share such a tile
    q, k, v, theta = make(200, rows=150, heads=1)
    positions = torch.arange(150) + 50
    theta[0, :, dead] = 1e6
    k[1, :, 64:128] = 0
    options = {"positions": positions, "lengths": torch.tensor([200, 200, 120])}
    stats = affinity_mix(q, k, v, theta.abs() + 1, **options, return_stats=True)[1]
    assert torch.equal(stats.live, live_tiles(dense_weights(q, k, theta.abs() + 1, **options)))
    assert 0.2 < stats.live.float().mean() < 0.8
