import pytest
import torch
from glomo_kernels import affinity_mix, scores
from kernel_oracle import (
    assert_no_worse,
    assert_no_worse_on_the_whole,
    dense_weights,
    gradients,
    leaves,
    short_documents,
)

OP = "affinity_mix"
pytestmark = pytest.mark.usefixtures("nan_memory")
KINDS = {
    "relu": {"kind": "relu"},
    "threshold": {"kind": "relu", "theta": True},
    "square": {"kind": "square"},
    "topk": {"kind": "topk", "topk": 3},
    "topk per sample": {"kind": "topk", "topk": torch.tensor([1, 2, 200])},
    "softmax": {"kind": "softmax"},
}
REFUSED = [("cpp", "softmax")]
# T, lengths: with padding, a sample of padding alone, a sample of one unit (no edge if causal)
SIZES = [(1, [1, 0, 1]), (2, [2, 1, 0]), (63, [63, 0, 17]), (130, None)]


def make(units, *, rows=None, heads=2, width=5, values=3):
    rows = units if rows is None else rows
    q = torch.randn(3, heads, rows, width, dtype=torch.float64)
    k = torch.randn(3, heads, units, width, dtype=torch.float64)
    v = torch.randn(3, heads, units, values, dtype=torch.float64)
    return q, k, v, torch.randn(3, heads, rows, dtype=torch.float64)


def split(case):
    """(uses theta, options of affinity_mix)"""
    options = dict(KINDS[case])
    return options.pop("theta", False), options


def both(inputs, dtype, with_theta, options):
    """Outputs and gradients: of the op in `dtype`, of the dense formula in float64 and in `dtype`."""
    results = []
    for function, used in ((affinity_mix, dtype), (None, torch.float64), (None, dtype)):
        q, k, v, theta = leaves(*inputs, dtype=dtype)
        q, k, v, theta = leaves(q, k, v, theta, dtype=used)
        wanted = [q, k, v, theta] if with_theta else [q, k, v]
        bias = theta if with_theta else None
        out = function(q, k, v, bias, **options) if function else dense_weights(q, k, bias, **options) @ v
        results.append([out, *gradients(out, wanted)])
    return results


def compare(results):
    for name, got, exact, naive in zip(("mixed", "dq", "dk", "dv", "dtheta"), *results, strict=False):
        assert_no_worse(name, got, exact, naive)


# Without bfloat16 for topk: it rounds the dense formula's scores, and then another edge is the k-th largest.
EXACT = [(case, dtype) for case in KINDS for dtype in (torch.float64, torch.float32)]
ROUNDED = [(case, torch.bfloat16) for case in KINDS if "topk" not in case]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("units,lengths", SIZES)
@pytest.mark.parametrize("case,dtype", EXACT + ROUNDED)
def test_agrees_with_dense_formula(backend, case, units, lengths, causal, dtype):
    with_theta, options = split(case)
    lengths = None if lengths is None else torch.tensor(lengths)
    compare(both(make(units), dtype, with_theta, {**options, "lengths": lengths, "causal": causal}))


def test_rows_of_hundreds_of_edges_in_tiles_with_few(monkeypatch):
    """Each tile's edges are added up aside: one after the other, they miss twice PyTorch's error."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    q, k, v = (torch.randn(1, 1, 2000, 16, dtype=torch.float64) for _ in range(3))
    theta = torch.full((1, 1, 2000), 0.5, dtype=torch.float64)
    results = both((q / 4, k, v + 3, theta), torch.float32, True, {"kind": "relu"})
    for name, *numbers in zip(("mixed", "dq", "dk", "dv", "dtheta"), *results, strict=True):
        assert_no_worse_on_the_whole(name, *numbers)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("width,values", [(300, 70), (67, 256)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tiles_with_few_edges_beside_tiles_with_many(backend, width, values, dtype, causal):
    """Products over single edges: every size of block, rows from none to all keys, last tiles of 8 rows and keys."""
    q, k, v, _ = make(200, width=width, values=values)
    theta = torch.linspace(-1, 4, 200, dtype=torch.float64)[torch.randperm(200)].expand(3, 2, -1) * width**0.5
    assert 0.2 < float((q @ k.mT > theta[..., None]).double().mean()) < 0.3
    q, k = q.contiguous(), k.transpose(1, 2).contiguous().transpose(1, 2)
    compare(both((q, k, v, theta), dtype, True, {"lengths": torch.tensor([200, 150, 3]), "causal": causal}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_over_single_edges_of_every_width(monkeypatch, dtype):
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    for width in [*range(1, 36), 63, 64, 65, 127, 128, 129, 250, 256, 273, 400]:
        q, k, v, _ = make(40, width=width, values=width)
        q, k = ((x * 16).round() / 16 for x in (q, k))  # scores are exact in float32, and none is near theta
        theta = (torch.linspace(0, 2, 40, dtype=torch.float64) * width**0.5 * 256).round() / 256 + 1 / 512
        theta = theta.expand(3, 2, -1)
        compare(both((q, k, v, theta), dtype, True, {"causal": False}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_row_of_one_edge_has_no_gradient_of_its_score(monkeypatch, dtype):
    """Its weight is 1, whatever the score: to the bit, though nothing is divided."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    q, k, v, _ = make(90, width=16)
    q *= 1000  # the 1e-16 of the denominator is lost beside the weights
    theta = (q @ k.mT).topk(2).values.mean(-1)
    q, k, v, theta = leaves(q, k, v, theta, dtype=dtype)
    out, stats = affinity_mix(q, k, v, theta, causal=False, return_stats=True)
    assert (stats.edges == 1).all()
    dq, dk, _, dtheta = gradients(out, [q, k, v, theta])
    assert not dq.any() and not dk.any() and not dtheta.any()


@pytest.mark.parametrize("backend", ["reference"], indirect=True)
@pytest.mark.parametrize("elements", [1, 40, 300])
@pytest.mark.parametrize("case", KINDS)
def test_tiling_does_not_matter(backend, monkeypatch, case, elements):
    monkeypatch.setattr(scores, "TILE_ELEMENTS", elements)
    with_theta, options = split(case)
    compare(both(make(11), torch.float64, with_theta, {**options, "lengths": torch.tensor([11, 4, 0])}))


@pytest.mark.parametrize(
    "positions", [torch.tensor([7, 0, 7]), torch.tensor([[1, 8, 0], [3, 3, 2], [0, 0, 4]])]
)
@pytest.mark.parametrize("causal", [True, False])
def test_query_rows_at_positions(backend, positions, causal):
    options = {"positions": positions, "lengths": torch.tensor([9, 3, 5]), "causal": causal}
    compare(both(make(9, rows=3), torch.float32, True, options))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", ["threshold", "topk", "softmax"])
def test_packed_documents_do_not_see_each_other(backend, case, causal):
    with_theta, options = split(case)
    inputs = make(150)
    segments = torch.zeros(3, 150, dtype=torch.int64)
    segments[0, 70:] = 7
    segments[1] = short_documents(150)
    options |= {"segments": segments, "lengths": torch.tensor([150, 140, 3]), "causal": causal}
    compare(both(inputs, torch.float32, with_theta, options))

    q, k, v, theta = inputs
    whole = affinity_mix(q, k, v, theta if with_theta else None, **options)
    q, k, v, theta = (x[:1, :, 70:] for x in inputs)
    alone = affinity_mix(q, k, v, theta if with_theta else None, causal=causal, **split(case)[1])
    torch.testing.assert_close(whole[:1, :, 70:], alone, rtol=1e-12, atol=1e-12)


def test_rows_in_any_order(backend):
    """The rows of one block see no key of the second tile, those of the blocks before and after it do."""
    positions = torch.tensor([130] * 6 + [10] * 64 + [130] * 64)
    compare(both(make(140, rows=134), torch.float32, True, {"positions": positions}))


@pytest.mark.parametrize("positions", [[70, 3], [3, 70]])
def test_rows_of_documents_that_are_a_tile_long(backend, positions):
    segments = (torch.arange(128) // 64).expand(3, -1)
    options = {"positions": torch.tensor(positions), "segments": segments, "causal": False}
    compare(both(make(128, rows=2), torch.float32, True, options))


def test_positions_in_packed_rows(backend):
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]] * 3)
    options = {"positions": torch.tensor([8, 3, 4]), "segments": segments, "causal": False}
    compare(both(make(9, rows=3), torch.float32, True, options))


def test_positions_select_rows_of_the_whole(backend):
    q, k, v, theta = make(9)
    rows = torch.tensor([8, 2])
    whole = affinity_mix(q, k, v, theta)
    part = affinity_mix(q[:, :, rows], k, v, theta[:, :, rows], positions=rows)
    torch.testing.assert_close(part, whole[:, :, rows], rtol=1e-13, atol=1e-13)


def test_non_contiguous_inputs(backend):
    q, k, v, theta = make(12)
    strided = [
        q.transpose(1, 2).contiguous().transpose(1, 2),
        k.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([v, v], -1)[..., 0],
        theta.mT.contiguous().mT,
    ]
    assert not any(x.is_contiguous() for x in strided)
    for kind in ("relu", "softmax") if backend == "reference" else ("relu", "square"):
        results = []
        for tensors in ((q, k, v, theta), strided):
            tensors = [x.detach().requires_grad_() for x in tensors]
            out = affinity_mix(*tensors[:3], tensors[3] if kind == "relu" else None, kind=kind)
            results.append([out, *gradients(out, tensors[: 4 if kind == "relu" else 3])])
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_offsets_beyond_32_bits(monkeypatch):
    """Samples more than 2^31 elements apart; memory that is never touched takes no room."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    torch.use_deterministic_algorithms(False)  # nothing is to be written into 8 GiB
    far = (1 << 31) + 5
    try:
        memory = torch.empty(far + 2 * 9 * 4)
    except RuntimeError:
        pytest.skip("this machine gives no 8 GiB of addresses")
    q, k, v = (memory.as_strided((2, 2, 9, 4), (far, 36, 4, 1)) for _ in range(3))
    near = torch.randn(2, 2, 9, 4)
    q.copy_(near)
    assert torch.equal(affinity_mix(q, k, v), affinity_mix(near, near, near))


def test_nan_spoils_its_row_and_no_other(backend):
    q, k, v, theta = make(9)
    q[1, 0, 4, 2] = torch.nan
    out = affinity_mix(q, k, v, theta)
    assert out[1, 0, 4].isnan().all()
    out[1, 0, 4] = 0
    assert not out.isnan().any()


@pytest.mark.parametrize("topk", [2, 100])
def test_nan_among_the_largest_is_not_lost(backend, topk):
    q, k, v = torch.randn(3, 1, 1, 8, 4)
    bad_q, bad_k = q.clone(), k.clone()
    bad_q[0, 0, 5] = float("nan")
    bad_k[0, 0, 3] = float("nan")
    rows = affinity_mix(bad_q, k, v, kind="topk", topk=topk).isnan().any(-1)[0, 0]
    assert rows.tolist() == [i == 5 for i in range(8)]
    rows = affinity_mix(q, bad_k, v, kind="topk", topk=topk).isnan().any(-1)[0, 0]
    assert rows.tolist() == [i > 3 for i in range(8)]


def test_rows_without_weight_are_exactly_zero_and_give_no_gradient(backend):
    q, k, v, _ = make(6)
    theta = torch.full((3, 2, 6), 1e6, dtype=torch.float64)
    inputs = leaves(q, k, v, theta, dtype=torch.float32)
    out, stats = affinity_mix(*inputs, return_stats=True)
    assert (out == 0).all()
    assert (stats.row_sum == 0).all() and (stats.edges == 0).all() and (stats.entropy == 0).all()
    assert out.requires_grad and not any(x.requires_grad for x in stats)
    for gradient in gradients(out, inputs):
        assert (gradient == 0).all()


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e4])
def test_tiny_and_huge_scores(backend, size):
    q, k, v, theta = make(17)
    compare(both((q * size, k, v, theta * size), torch.float32, True, {}))


def test_ties_of_topk_go_to_the_lowest_column(backend):
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([1.0, 2.0, -1.0, 2.0, 1.0, -2.0]).view(1, 1, 6, 1)
    v = torch.eye(6)[None, None]
    at_end = {"positions": torch.tensor([5]), "causal": False, "kind": "topk"}
    mixed = affinity_mix(q, k, v, topk=4, **at_end)
    expected = torch.tensor([1.0, 4.0, 0.0, 4.0, 0.0, 4.0]) / 13
    torch.testing.assert_close(mixed.flatten(), expected)
    mixed = affinity_mix(q, k, v, topk=2, **at_end)
    torch.testing.assert_close(mixed.flatten(), torch.tensor([0, 0.5, 0, 0.5, 0, 0]))
