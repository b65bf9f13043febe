import importlib

import pytest
import torch
from glomo_kernels import BackendUnavailable, affinity_graph, affinity_mix, scores
from glomo_kernels.affinity_mix import _forward
from glomo_kernels.spans import make_spans
from kernel_oracle import assert_no_worse, assert_no_worse_on_the_whole, dense_weights, gradients, leaves

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
    segments[1] = torch.arange(150) // 11
    options |= {"segments": segments, "lengths": torch.tensor([150, 140, 3]), "causal": causal}
    compare(both(inputs, torch.float32, with_theta, options))

    q, k, v, theta = inputs
    whole = affinity_mix(q, k, v, theta if with_theta else None, **options)
    q, k, v, theta = (x[:1, :, 70:] for x in inputs)
    alone = affinity_mix(q, k, v, theta if with_theta else None, causal=causal, **split(case)[1])
    torch.testing.assert_close(whole[:1, :, 70:], alone, rtol=1e-12, atol=1e-12)


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


def test_one_theta_for_all(backend):
    """The `bias` kind of sparsity: one learned threshold per layer."""
    q, k, v, _ = make(9)
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    results = []
    for bias in (theta, theta.expand(3, 2, 9).clone()):
        out = affinity_mix(q, k, v, bias)
        results.append([out, *gradients(out, [theta])])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_nan_spoils_its_row_and_no_other(backend):
    q, k, v, theta = make(9)
    q[1, 0, 4, 2] = torch.nan
    out = affinity_mix(q, k, v, theta)
    assert out[1, 0, 4].isnan().all()
    out[1, 0, 4] = 0
    assert not out.isnan().any()


def test_spans_end_with_the_columns():
    """Lengths on a device are not looked at before."""
    for causal in (True, False):
        spans = make_spans(
            1, 4, torch.device("cpu"), lengths=torch.tensor([9]), causal=causal, positions=None
        )
        assert spans[0, :, 1].tolist() == ([0, 1, 2, 3] if causal else [4] * 4)


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


def test_a_number_is_one_theta_for_all(backend):
    q, k, v = torch.randn(3, 2, 2, 9, 4, dtype=torch.float64)
    assert torch.equal(
        affinity_mix(q, k, v, 0.1), affinity_mix(q, k, v, torch.full((2, 2, 9), 0.1, dtype=torch.float64))
    )


@pytest.mark.parametrize("case", ["relu", "square", "topk", "softmax"])
def test_stats_of_nothing(backend, case):
    options = {"kind": case, "topk": 2 if case == "topk" else None, "return_stats": True}
    q = torch.randn(2, 3, 0, 4)
    k = torch.randn(2, 3, 5, 4)
    mixed, stats = affinity_mix(q, k, k, positions=torch.zeros(0, dtype=torch.int64), **options)
    assert mixed.shape == (2, 3, 0, 4) and stats.row_sum.shape == (2, 3, 0)
    mixed, stats = affinity_mix(q, q, q, **options)
    assert mixed.shape == (2, 3, 0, 4) and stats.live.numel() == 0


def test_under_autocast_dtypes_may_differ(backend):
    """As for torch's own attention: a projection gives bfloat16 there, and a parameter is float32."""
    q, k, v = torch.randn(3, 2, 2, 9, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = affinity_mix(q.bfloat16(), k.bfloat16(), v)
        assert affinity_graph(q, k.bfloat16()).weights.dtype == torch.float32
    assert torch.equal(mixed, affinity_mix(q.bfloat16(), k.bfloat16(), v.bfloat16()))
    with pytest.raises(ValueError, match=r"v must be torch\.bfloat16"):
        affinity_mix(q.bfloat16(), k.bfloat16(), v)


def test_rows_without_weight_are_exactly_zero_and_give_no_gradient(backend):
    q, k, v, _ = make(6)
    theta = torch.full((3, 2, 6), 1e6, dtype=torch.float64)
    inputs = leaves(q, k, v, theta, dtype=torch.float32)
    out, stats = affinity_mix(*inputs, return_stats=True)
    assert (out == 0).all()
    assert (stats.row_sum == 0).all() and (stats.edges == 0).all() and (stats.entropy == 0).all()
    for gradient in gradients(out, inputs):
        assert (gradient == 0).all()


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e4])
def test_tiny_and_huge_scores(backend, size):
    q, k, v, theta = make(17)
    compare(both((q * size, k, v, theta * size), torch.float32, True, {}))


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
    assert torch.equal(stats.live, (weights > 0).any(-1, keepdim=True).any(-2, keepdim=True))
    assert not stats.row_sum.requires_grad
    single = affinity_mix(q.float(), k.float(), v.float(), **{**options, "return_stats": True})[1]
    assert single.row_sum.dtype == torch.float32


def test_no_entropy_is_negative(backend):
    """Rows that one edge rules, and rounding."""
    torch.manual_seed(1)
    q = torch.randn(2, 2, 40, 3, dtype=torch.float64) * torch.tensor([1, 1e-5, 1])
    k = torch.cat([q[:, :, :1], q[:, :, 1:] * 1e-6], 2)
    assert affinity_mix(q, k, q, return_stats=True)[1].entropy.min() == 0


@pytest.mark.parametrize("dead", [slice(64, 128), slice(20, 130)], ids=["a tile of rows", "rows of three"])
def test_live_tiles(backend, dead):
    q, k, v, theta = make(200, rows=150, heads=1)
    positions = torch.arange(150) + 50
    theta[0, :, dead] = 1e6
    k[1, :, 64:128] = 0
    options = {"positions": positions, "lengths": torch.tensor([200, 200, 120])}
    stats = affinity_mix(q, k, v, theta.abs() + 1, **options, return_stats=True)[1]
    weights = dense_weights(q, k, theta.abs() + 1, **options)
    tiles = torch.nn.functional.pad(weights > 0, (0, 56, 0, 42)).unflatten(3, (4, 64)).unflatten(2, (3, 64))
    assert torch.equal(stats.live, tiles.any(5).any(3))
    assert 0.2 < stats.live.float().mean() < 0.8


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


@pytest.mark.parametrize("case", KINDS)
def test_gradcheck(backend, case):
    with_theta, options = split(case)
    q, k, v, theta = leaves(*make(5), dtype=torch.float64)
    inputs = (q, k, v, theta) if with_theta else (q, k, v)
    options["lengths"] = torch.tensor([5, 0, 3])
    assert torch.autograd.gradcheck(lambda *x: affinity_mix(*x, **options), inputs)


def test_kinds_that_a_backend_is_not_made_for_are_refused(monkeypatch):
    q, k, v, _ = make(4)
    for backend, kind in REFUSED:
        monkeypatch.setenv("GLOMO_KERNELS", backend)
        with pytest.raises(BackendUnavailable, match=f"{backend}: kind '{kind}' is not implemented"):
            affinity_mix(q, k, v, kind=kind)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", ["threshold", "square", "topk"])
def test_scores_that_are_kept_and_computed_again_give_the_same_gradients(backend, monkeypatch, case, causal):
    with_theta, options = split(case)
    inputs = leaves(*make(150, width=40, values=30), dtype=torch.float32)
    inputs = inputs if with_theta else inputs[:3]
    module = importlib.import_module("glomo_kernels.affinity_mix")
    results = []
    for keep in (True, False):
        monkeypatch.setattr(module, "_worth_keeping", lambda *x, keep=keep: keep)
        results.append(gradients(affinity_mix(*inputs, **options, causal=causal), inputs))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("case", ["threshold", "topk"])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, case):
    """Several blocks per head, fewer heads than threads and more; again and again."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    with_theta, options = split(case)
    inputs = leaves(*make(300, width=20, values=17), dtype=torch.float32)
    inputs = inputs if with_theta else inputs[:3]
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8, 8, 8):
            torch.set_num_threads(threads)
            out = affinity_mix(*inputs, **options)
            runs.append([out.detach(), *gradients(out, inputs)])
    finally:
        torch.set_num_threads(before)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_second_derivative_is_refused(backend):
    q, k, v, theta = leaves(*make(4), dtype=torch.float64)
    (dq,) = torch.autograd.grad(affinity_mix(q, k, v, theta).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="affinity_mix: second derivatives"):
        dq.sum().backward()


def test_autocast_does_not_reach_inside(backend):
    inputs = leaves(*make(9), dtype=torch.float32)
    plain = affinity_mix(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = affinity_mix(*inputs)
    assert torch.equal(plain, cast)


class TestRegistration:
    @pytest.fixture(autouse=True)
    def plain_memory(self, nan_memory):
        torch.use_deterministic_algorithms(False)

    @pytest.mark.parametrize("keep", [False, True])
    @pytest.mark.parametrize("case", ["threshold", "topk", "softmax"])
    def test_opcheck(self, backend, case, keep):
        q, k, v, theta = leaves(*make(4), dtype=torch.float32)
        spans = torch.tensor([0, 3]).expand(3, 4, 2).clone()
        theta = theta if case == "threshold" else None
        topk = torch.tensor([2, 1, 2]) if case == "topk" else None
        kind = "relu" if case == "threshold" else case
        torch.library.opcheck(_forward.overload, (q, k, v, theta, spans, topk, kind, True, keep))

    def test_compiles_as_one_graph(self, backend):
        lengths = torch.tensor([9, 2, 5])

        def step(q, k, v, theta):
            mixed, stats = affinity_mix(q * 1, k, v, theta, lengths=lengths, return_stats=True)
            return mixed * 2, stats.edges

        inputs = leaves(*make(9), dtype=torch.float32)
        eager, edges = step(*inputs)
        out, compiled_edges = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(out, eager)
        assert torch.equal(edges, compiled_edges)
        torch.testing.assert_close(gradients(out, inputs), gradients(eager, inputs))


def test_a_backward_pass_by_another_backend(monkeypatch):
    """GLOMO_KERNELS was set around the forward pass alone: what is kept for a backend was never put there."""
    results = []
    for forced in ("", "reference"):
        torch.manual_seed(0)
        inputs = leaves(*make(40, width=32, values=32)[:3], dtype=torch.float32)
        with monkeypatch.context() as patch:
            patch.setenv("GLOMO_KERNELS", forced)
            out = affinity_mix(*inputs)
        results.append([out, *gradients(out, inputs)])
    torch.testing.assert_close(*results)


def test_a_count_of_zero_where_nobody_could_look_at_it(backend):
    """Compiled, its tensor is not read: it counts as one."""
    q, k, v, _ = (x.float() for x in make(9))
    step = torch.compile(affinity_mix, fullgraph=True, backend="aot_eager")
    none = step(q, k, v, kind="topk", topk=torch.tensor([0, 2, 0]))
    torch.testing.assert_close(none, affinity_mix(q, k, v, kind="topk", topk=torch.tensor([1, 2, 1])))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"kind": "sparse"}, "kind must be one of relu"),
        ({"q": torch.zeros(3, 2, 4)}, r"q must be \[B, H, Tq, Dg\], got \(3, 2, 4\)"),
        ({"q": torch.zeros(3, 2, 4, 5, dtype=torch.int64)}, "q must be floating point"),
        ({"q": torch.zeros(3, 2, 4, 5).to(torch.float8_e4m3fn)}, "q must be .* got torch.float8_e4m3fn"),
        ({"q": torch.zeros(3, 2, 4, 5).to_sparse()}, "q must be a dense tensor, got layout torch.sparse_coo"),
        ({"k": torch.zeros(3, 1, 4, 5)}, r"k must be .* got \(3, 1, 4, 5\)"),
        ({"k": torch.zeros(3, 2, 4, 5).double()}, "k must be torch.float32"),
        ({"v": torch.zeros(3, 2, 5, 3)}, r"v must be .* got \(3, 2, 5, 3\)"),
        ({"theta": torch.zeros(3, 2)}, r"theta must be \(3, 2, 4\)"),
        ({"kind": "square"}, "theta is only used by kind 'relu'"),
        ({"theta": True}, "theta must be a tensor or a number, got True"),
        ({"theta": "1"}, "theta must be a tensor or a number, got '1'"),
        ({"causal": "no"}, "causal must be True or False, got 'no'"),
        ({"return_stats": None}, "return_stats must be True or False, got None"),
        ({"kind": "topk", "theta": None, "topk": True}, "topk must be a whole number .* got True"),
        ({"kind": "topk", "theta": None, "topk": 2.0}, "topk must be a whole number .* got 2.0"),
        ({"lengths": torch.tensor([1, 2])}, r"lengths must be \(3,\), got \(2,\)"),
        ({"lengths": torch.tensor([1, 2, -3])}, r"lengths must lie in 0..T=4, got -3..2"),
        ({"lengths": torch.tensor([1, 2, 5])}, r"lengths must lie in 0..T=4, got 1..5"),
        ({"lengths": torch.tensor([1.0, 2, 3])}, "lengths must be an int64 tensor"),
        (
            {"k": torch.zeros(3, 2, 6, 5), "v": torch.zeros(3, 2, 6, 3)},
            "q has 4 rows and k 6; with Tq != T give positions",
        ),
        ({"positions": torch.tensor([0, 1, 2, 4])}, r"positions must lie in 0..3 \(T=4\), got 0..4"),
        ({"positions": torch.tensor([0, 1])}, "positions must be"),
        (
            {"positions": torch.zeros(4, dtype=torch.int64, device="meta")},
            "positions must be on cpu .* got meta",
        ),
        ({"lengths": torch.ones(3, dtype=torch.int64, device="meta")}, "lengths must be on cpu .* got meta"),
        ({"segments": torch.zeros(3, 5, dtype=torch.int64)}, r"segments must be \(3, 4\), got \(3, 5\)"),
        ({"segments": torch.tensor([[0, 0, 1, 0]] * 3)}, "segments of sample 0 return to an earlier number"),
        ({"topk": 2}, "topk goes with kind 'topk'"),
        ({"kind": "topk", "theta": None}, "topk goes with kind 'topk'"),
        ({"kind": "topk", "theta": None, "topk": 0}, "topk must be at least 1"),
        ({"kind": "topk", "theta": None, "topk": 2**70}, r"topk must be at least 1 and below 2\^63"),
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
