"""affinity_mix on Triton: in the interpreter on a CPU, and on a GPU, the same tests."""

import numpy as np
import pytest
import test_affinity_mix as plain
import torch
from glomo_kernels import affinity_mix
from glomo_kernels.affinity_mix import triton_impl
from glomo_kernels.spans import make_spans
from kernel_oracle import assert_nan_is_in_the_statistics, dense_weights, leaves, live_tiles
from triton_cases import DTYPES, check, on_device, pytest_generate_tests
from triton_here import DEVICE, anywhere, kernels, run_interpreted

__all__ = ["on_device", "pytest_generate_tests"]  # for conftest.py and pytest: see there


@anywhere
def test_in_the_interpreter():
    run_interpreted(__file__)


SMALL = [
    *((units, lengths, torch.float32) for units, lengths in [(1, [1, 0, 1]), (2, [2, 1, 0])]),
    *((63, [63, 0, 17], dtype) for dtype in DTYPES),
]


KINDS = [case for case in plain.KINDS if case != "softmax"]


@kernels
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("units,lengths,precision", SMALL, ids=str)
@pytest.mark.parametrize("case", KINDS)
def test_agrees_with_dense_formula(case, units, lengths, precision, causal):
    with_theta, options = plain.split(case)
    options |= {"lengths": torch.tensor(lengths), "causal": causal}
    check(plain.make(units, heads=1), precision, with_theta, options)


@kernels
@pytest.mark.parametrize("case,causal", [("threshold", True), ("square", False)])
def test_several_tiles(case, causal, dtype):
    with_theta, options = plain.split(case)
    options |= {"lengths": torch.tensor([130, 66, 0]), "causal": causal}
    check(plain.make(130, heads=1), dtype, with_theta, options)


@kernels
@pytest.mark.parametrize("width,values", [(1, 1), (33, 17), (24, 40), (16, 100), (256, 64)])
def test_widths(width, values, dtype):
    inputs = plain.make(40, heads=1, width=width, values=values)
    inputs[0].mul_(width**-0.5)
    check(inputs, dtype, True, {"lengths": torch.tensor([40, 7, 0])})


@kernels
@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_do_not_see_each_other(causal, dtype):
    segments = torch.zeros(3, 150, dtype=torch.int64)
    segments[0, 70:] = 7
    segments[1] = torch.arange(150) // 11
    options = {"segments": segments, "lengths": torch.tensor([150, 140, 3]), "causal": causal}
    check(plain.make(150, heads=1), dtype, True, options)


@kernels
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "positions", [torch.tensor([7, 0, 7]), torch.tensor([[1, 8, 0], [3, 3, 2], [0, 0, 4]])]
)
def test_query_rows_at_positions(positions, causal, dtype):
    options = {"positions": positions, "lengths": torch.tensor([9, 3, 5]), "causal": causal}
    check(plain.make(9, rows=3), dtype, True, options)


@kernels
def test_rows_without_weight_are_exactly_zero_and_give_no_gradient():
    plain.test_rows_without_weight_are_exactly_zero_and_give_no_gradient("triton")


@kernels
@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e4])
def test_tiny_and_huge_scores(size):
    plain.test_tiny_and_huge_scores("triton", size)


@kernels
@pytest.mark.parametrize("size", [1e-3, 30])
def test_rows_that_one_edge_rules(size, dtype):
    """Thresholds just below the largest score: dO . v - D cancels, and the slopes are steep. Such a row's output is
    the one v, whatever its weight was rounded to."""
    q, k, v, _ = plain.make(40, heads=1)
    q, k, v = (x.to(dtype).double() for x in (q * size, k, v + 3))
    scores = (q @ k.mT).masked_fill(torch.ones(40, 40).triu().bool(), -torch.inf)
    theta = scores.amax(-1).clamp(min=-1) - 0.05 * size
    check((q, k, v, theta), dtype, True, {})


@kernels
@pytest.mark.parametrize("case", KINDS)
def test_stats(case):
    """live as well: exactly the tiles with a weight in them."""
    with_theta, options = plain.split(case)
    q, k, v, theta = (x.float() for x in plain.make(70, heads=1))
    options["lengths"] = torch.tensor([70, 0, 4])
    theta = theta.abs() + 1 if with_theta else None
    mixed, stats = on_device(q, k, v, theta, **options, return_stats=True)
    torch.testing.assert_close(mixed, on_device(q, k, v, theta, **options), rtol=0, atol=0)
    weights = dense_weights(q, k, theta, **options)
    assert stats.edges.dtype == torch.int32
    torch.testing.assert_close(stats.edges.long(), (weights > 0).sum(-1))
    torch.testing.assert_close(stats.entropy, torch.special.entr(weights).sum(-1))
    assert ((stats.row_sum == 0) == (weights.sum(-1) == 0)).all()
    assert torch.equal(stats.live, live_tiles(weights))


@kernels
@pytest.mark.parametrize("case", ["relu", "square"])
def test_a_row_with_nan_does_not_pass_for_one_of_a_single_edge(case):
    q, k, v, _ = (x.float() for x in plain.make(70, heads=1))
    assert_nan_is_in_the_statistics(on_device, q, k, v, case)


@kernels
def test_live_tiles():
    q, k, v, theta = (x.float() for x in plain.make(200, rows=150, heads=1))
    theta = theta.abs() + 1
    theta[0, :, 64:128] = 1e6  # the second tile of rows
    k[1, :, 64:128] = 0
    options = {"positions": torch.arange(150) + 50, "lengths": torch.tensor([200, 200, 120])}
    live = on_device(q, k, v, theta, **options, return_stats=True)[1].live
    assert torch.equal(live, live_tiles(dense_weights(q, k, theta, **options)))
    assert 0.2 < live.float().mean() < 0.8


def planted(units=200):
    """q, k, v, theta, spans of which the keys 64..127 have no weight at all, and the rows 128..191 none of theirs."""
    q, k, v, theta = (x[:1].float().to(DEVICE) for x in plain.make(units, heads=1))
    k[:, :, 64:128] = 0
    theta = theta.abs() + 0.5
    theta[:, :, 128:192] = 1e6
    return q, k, v, theta, make_spans(1, units, q.device, lengths=None, causal=False, positions=None)


@kernels
def test_dead_tiles_are_left_out_and_change_nothing():
    q, k, v, theta, spans = planted()
    mixed, norm, _, _, live, kept = triton_impl.forward(q, k, v, theta, spans, None, "relu", False, "nothing")
    assert live[0, 0].tolist() == [[1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]]
    grad = torch.randn_like(mixed)
    rest = (theta, spans, None, mixed, norm)
    lists = triton_impl.backward(grad, q, k, v, *rest, live, kept, "relu", "nothing")
    everything = triton_impl.backward(grad, q, k, v, *rest, torch.ones_like(live), kept, "relu", "nothing")
    for name, ours, whole in zip(("dq", "dk", "dv", "dtheta"), lists, everything, strict=True):
        assert torch.equal(ours, whole), name
    spoilt = v.clone()
    spoilt[:, :, 64:128] = torch.nan
    for ours, again in zip(
        lists, triton_impl.backward(grad, q, k, spoilt, *rest, live, kept, "relu", "nothing"), strict=True
    ):
        assert torch.equal(ours, again)


@kernels
def test_non_contiguous_inputs():
    q, k, v, theta = (x.float() for x in plain.make(12))
    strided = [
        q.transpose(1, 2).contiguous().transpose(1, 2),
        k.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([v, v], -1)[..., 0],
        theta.mT.contiguous().mT,
    ]
    results = []
    for tensors in ((q, k, v, theta), strided):
        tensors = [x.to(DEVICE).detach().requires_grad_() for x in tensors]
        out = affinity_mix(*tensors)
        results.append(
            [out, *torch.autograd.grad(out, tensors, torch.ones_like(out[..., :1]).expand_as(out))]
        )
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@kernels
def test_offsets_beyond_two_to_the_31():
    """Samples 2^31 elements apart, and rows nearly 2^24: offsets of both kinds pass 2^31."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(2, 1, 140, 16, dtype=torch.float64, generator=generator).to(DEVICE, torch.bfloat16)
    size = 140 * 2**24
    if DEVICE == "cpu":  # NumPy's zeros take no memory until they are written
        memory = torch.from_numpy(np.zeros(size, np.int16)).view(torch.bfloat16)
    else:
        memory = torch.zeros(size, dtype=torch.bfloat16, device=DEVICE)
    far = memory.as_strided((2, 1, 140, 16), (2**31, 16, 16, 1))
    wide = memory.as_strided((1, 1, 140, 16), (0, 0, 2**24 - 16, 1))
    for strided, values in ((far, small), (wide, small[:1])):
        strided.copy_(values)
        results = []
        for x in (values.contiguous(), strided):
            x = x.detach().requires_grad_()
            out = affinity_mix(x, x, x)
            results.append([out, *torch.autograd.grad(out, x, torch.ones_like(out))])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@kernels
def test_ties_of_topk_go_to_the_lowest_column():
    plain.test_ties_of_topk_go_to_the_lowest_column("triton")


@kernels
def test_ties_of_topk_in_many_tiles(dtype):
    """Scores of -1, 0 and 1 only, keys in several tiles: forward and backward agree on who is in."""
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randint(-1, 2, (1, 1, 100, 2), generator=generator).double() for _ in range(2))
    v = torch.randn(1, 1, 100, 3, dtype=torch.float64)
    check((q, k, v, q[..., 0]), dtype, False, {"kind": "topk", "topk": 7, "causal": False})


@kernels
def test_float16_of_small_scores():
    """r / l, and with it the slopes of dk, grow as the scores shrink: beyond float16, where dk itself is not."""
    q, k, v, _ = (x.half() for x in plain.make(70, heads=1))
    results = []
    for dtype in (torch.float16, torch.float64):
        queries, keys, values = leaves(q * 1e-5, k, v, dtype=dtype)
        weights = dense_weights(queries, keys, None, kind="relu") if dtype == torch.float64 else None
        out = on_device(queries, keys, values) if weights is None else weights @ values
        results += torch.autograd.grad(out.sum(), keys)
    torch.testing.assert_close(results[0].double(), results[1], rtol=2e-3, atol=2e-3 * results[1].abs().max())


@kernels
@pytest.mark.parametrize("topk", [torch.tensor([1, 9, 2, 9, 3, 9])[::2], torch.tensor([2]).expand(3)])
def test_a_strided_topk(topk):
    q, k, v, _ = (x.float() for x in plain.make(9))
    topk = topk.to(DEVICE)
    mixed = on_device(q, k, v, kind="topk", topk=topk)
    assert torch.equal(mixed, on_device(q, k, v, kind="topk", topk=topk.clone()))


@kernels
def test_nan_spoils_its_row_and_no_other():
    q, k, v, theta = (x.float() for x in plain.make(9))
    q[1, 0, 4, 2] = torch.nan
    out = on_device(q, k, v, theta)
    assert out[1, 0, 4].isnan().all()
    out[1, 0, 4] = 0
    assert not out.isnan().any()


@kernels
@pytest.mark.parametrize("case", KINDS)
def test_nan_in_a_key_does_not_reach_rows_that_see_nothing(case):
    """Rows of padding, in a block with others that do."""
    with_theta, options = plain.split(case)
    q, k, v, theta = (x.float() for x in plain.make(130, heads=1))
    options |= {"lengths": torch.tensor([100, 130, 0]), "causal": False}
    if "topk" in options:
        options["topk"] = 3
    k[0, 0, 5] = torch.nan
    mixed = on_device(q, k, v, theta if with_theta else None, **options)
    assert mixed[0, 0, :100].isnan().all() and (mixed[0, 0, 100:] == 0).all() and mixed[1:].isfinite().all()


@kernels
def test_no_rows_and_no_samples():
    for shape in ((0, 2, 4, 5), (3, 2, 0, 5)):
        x = torch.zeros(shape, device=DEVICE, requires_grad=True)
        out = affinity_mix(x, x, x)
        out.sum().backward()
        assert out.shape == shape and x.grad.shape == shape
