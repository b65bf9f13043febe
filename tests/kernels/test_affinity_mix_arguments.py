"""The arguments of affinity_mix: what may be given in their place, and what is refused by name."""

import numpy as np
import pytest
import torch
from glomo_kernels import BackendUnavailable, affinity_graph, affinity_mix
from glomo_kernels.spans import make_spans
from kernel_oracle import gradients
from test_affinity_mix import OP, REFUSED, make

__all__ = ["OP", "REFUSED"]  # for conftest.py: see there
pytestmark = pytest.mark.usefixtures("nan_memory")


def test_one_theta_for_all(backend):
    """The `bias` kind of sparsity: one learned threshold per layer."""
    q, k, v, _ = make(9)
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    results = []
    for bias in (theta, theta.expand(3, 2, 9).clone()):
        out = affinity_mix(q, k, v, bias)
        results.append([out, *gradients(out, [theta])])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_spans_end_with_the_columns():
    """Lengths on a device are not looked at before."""
    for causal in (True, False):
        spans = make_spans(
            1, 4, torch.device("cpu"), lengths=torch.tensor([9]), causal=causal, positions=None
        )
        assert spans[0, :, 1].tolist() == ([0, 1, 2, 3] if causal else [4] * 4)


@pytest.mark.parametrize("segments", [None, [0, 0, 0, 0, 1, 1, 2, 2, 2]], ids=["one document", "packed"])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_no_unit_are_zero_where_nobody_looks_before(backend, causal, segments):
    """Positions are looked at in plain CPU tensors alone: not on a device, in compiled code or of a parameter."""
    q, k, v, _ = make(9, rows=6)
    options = {"causal": causal, "segments": segments and torch.tensor([segments] * 3)}
    positions = torch.nn.Parameter(torch.tensor([-1, 8, 9, -10, 4, 99]), requires_grad=False)
    expected = torch.zeros_like(v[:, :, :6])
    expected[:, :, [1, 4]] = affinity_mix(q[:, :, [1, 4]], k, v, positions=torch.tensor([8, 4]), **options)
    torch.testing.assert_close(affinity_mix(q, k, v, positions=positions, **options), expected)


@pytest.mark.parametrize("number", [0.1, 1, np.float32(0.1)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_number_is_one_theta_for_all(backend, dtype, number):
    """Not rounded to half precision."""
    q, k, v = torch.randn(3, 2, 2, 9, 4).to(dtype)
    theta = torch.full((2, 2, 9), float(number), dtype=torch.float64)
    assert torch.equal(affinity_mix(q, k, v, number), affinity_mix(q, k, v, theta))


def test_topk_of_any_kind_of_whole_number(backend):
    q, k, v, _ = make(9)
    expected = affinity_mix(q, k, v, kind="topk", topk=torch.tensor([3, 3, 3]))
    for topk in (3, np.int64(3)):
        assert torch.equal(affinity_mix(q, k, v, kind="topk", topk=topk), expected)


def test_kinds_that_a_backend_is_not_made_for_are_refused(monkeypatch):
    q, k, v, _ = make(4)
    for backend, kind in REFUSED:
        monkeypatch.setenv("GLOMO_KERNELS", backend)
        with pytest.raises(BackendUnavailable, match=f"{backend}: kind '{kind}' is not implemented"):
            affinity_mix(q, k, v, kind=kind)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"kind": "sparse"}, "kind must be one of relu"),
        ({"q": [[[[1.0]]]]}, "q must be a tensor, got list"),
        ({"q": torch.zeros(3, 2, 4)}, r"q must be \[B, H, Tq, Dg\], got \(3, 2, 4\)"),
        ({"q": torch.zeros(3, 2, 4, 5, dtype=torch.int64)}, "q must be floating point"),
        ({"q": torch.zeros(3, 2, 4, 5).to(torch.float8_e4m3fn)}, "q must be .* got torch.float8_e4m3fn"),
        ({"q": torch.zeros(3, 2, 4, 5).to_sparse()}, "q must be a dense tensor, got layout torch.sparse_coo"),
        ({"k": [1.0]}, "k must be a tensor, got list"),
        ({"k": torch.zeros(3, 1, 4, 5)}, r"k must be .* got \(3, 1, 4, 5\)"),
        ({"k": torch.zeros(2, 2, 4, 5)}, r"k must be .* got \(2, 2, 4, 5\)"),
        ({"k": torch.zeros(3, 2, 4, 6)}, r"k must be \(3, 2, 'T', 5\) .* got \(3, 2, 4, 6\)"),
        ({"k": torch.zeros(3, 2, 4)}, r"k must be \(3, 2, 'T', 5\) .* got \(3, 2, 4\)"),
        ({"k": torch.zeros(3, 2, 4, 5).double()}, "k must be torch.float32"),
        ({"k": torch.zeros(3, 2, 4, 5, device="meta")}, "k must be .* on cpu like q, got .* on meta"),
        ({"v": torch.zeros(3, 2, 5, 3)}, r"v must be .* got \(3, 2, 5, 3\)"),
        ({"theta": torch.zeros(1)}, r"theta must be \(3, 2, 4\) .* or a scalar, got \(1,\)"),
        ({"theta": torch.zeros(3, 2)}, r"theta must be \(3, 2, 4\)"),
        ({"kind": "square"}, "theta is only used by kind 'relu'"),
        ({"theta": torch.zeros(3, 2, 4).to_sparse()}, "theta must be a dense tensor, got layout"),
        (
            {"theta": torch.zeros(3, 2, 4, dtype=torch.int64)},
            "theta must be floating .* got torch.int64 on cpu",
        ),
        ({"theta": torch.zeros((), device="meta")}, "theta must be .* on cpu, got torch.float32 on meta"),
        ({"theta": True}, "theta must be a tensor or a number, got True"),
        ({"theta": "1"}, "theta must be a tensor or a number, got '1'"),
        ({"theta": 1e39}, r"theta must be within the range of torch.float32, got 1e\+39"),
        ({"theta": -(10**400)}, "theta must be within the range of torch.float32, got -1000"),
        ({"causal": "no"}, "causal must be True or False, got 'no'"),
        ({"causal": 1}, "causal must be True or False, got 1"),
        ({"return_stats": None}, "return_stats must be True or False, got None"),
        ({"kind": "topk", "theta": None, "topk": True}, "topk must be a whole number .* got True"),
        ({"kind": "topk", "theta": None, "topk": 2.0}, "topk must be a whole number .* got 2.0"),
        ({"lengths": torch.tensor([1, 2])}, r"lengths must be \(3,\), got \(2,\)"),
        ({"lengths": torch.tensor([1, 2, -3])}, r"lengths must lie in 0..T=4, got -3..2"),
        ({"lengths": torch.tensor([1, 2, 5])}, r"lengths must lie in 0..T=4, got 1..5"),
        ({"lengths": torch.tensor([1.0, 2, 3])}, "lengths must be an int64 tensor"),
        ({"lengths": torch.tensor([1, 2, 3]).int()}, "lengths must be an int64 tensor, got torch.int32"),
        ({"lengths": [1, 2, 3]}, "lengths must be an int64 tensor, got list"),
        ({"lengths": torch.tensor([1, 2, 3]).to_sparse()}, "lengths must be a dense tensor, got layout"),
        (
            {"k": torch.zeros(3, 2, 6, 5), "v": torch.zeros(3, 2, 6, 3)},
            "q has 4 rows and k 6; with Tq != T give positions",
        ),
        (
            {"q": torch.zeros(3, 2, 6, 5), "theta": None},
            "q has 6 rows and k 4; with Tq != T give positions",
        ),
        ({"positions": torch.tensor([0])}, r"positions must be \(4,\) or \(3, 4\), got \(1,\)"),
        ({"positions": torch.tensor([0, 1, 2, 4])}, r"positions must lie in 0..3 \(T=4\), got 0..4"),
        ({"positions": torch.tensor([-1, 1, 2, 3])}, r"positions must lie in 0..3 \(T=4\), got -1..3"),
        ({"positions": torch.tensor([0, 1])}, "positions must be"),
        (
            {"positions": torch.zeros(4, dtype=torch.int64, device="meta")},
            "positions must be on cpu .* got meta",
        ),
        ({"lengths": torch.ones(3, dtype=torch.int64, device="meta")}, "lengths must be on cpu .* got meta"),
        ({"segments": torch.zeros(3, 5, dtype=torch.int64)}, r"segments must be \(3, 4\), got \(3, 5\)"),
        ({"segments": torch.tensor([[0, 0, 1, 0]] * 3)}, "segments of sample 0 return to an earlier number"),
        ({"topk": 2}, "topk goes with kind 'topk' .* got kind 'relu' and topk=2: leave topk out"),
        ({"kind": "topk", "theta": None}, "topk goes with kind 'topk' .* say how many edges a row keeps"),
        ({"kind": "topk", "theta": None, "topk": 0}, "topk must be at least 1"),
        ({"kind": "topk", "theta": None, "topk": 2**63}, r"topk must be at least 1 and below 2\^63"),
        ({"kind": "topk", "theta": None, "topk": torch.tensor([1, 0, 2])}, "topk must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {
        "q": torch.zeros(3, 2, 4, 5),
        "k": torch.zeros(3, 2, 4, 5),
        "v": torch.zeros(3, 2, 4, 3),
        "theta": torch.zeros(3, 2, 4),
    }
    affinity_mix(**good)
    with pytest.raises(ValueError, match="affinity_mix: " + message):
        affinity_mix(**{**good, **change})


@pytest.mark.parametrize(
    "change,message",
    [
        ({"causal": "no"}, "causal must be True or False, got 'no'"),
        ({"renormalise": 0}, "renormalise must be True or False, got 0"),
        ({"segments": torch.tensor([[0, 0, 1, 0]])}, "segments of sample 0 return to an earlier number"),
        ({"segments": torch.zeros(1, 5).long()}, r"segments must be \(1, 4\), got \(1, 5\)"),
        ({"lengths": torch.tensor([4, 4])}, r"lengths must be \(1,\), got \(2,\)"),
    ],
)
def test_affinity_graph_names_them_too(change, message):
    x = torch.zeros(1, 2, 4, 5)
    with pytest.raises(ValueError, match="affinity_graph: " + message):
        affinity_graph(x, x, **change)
