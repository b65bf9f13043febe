"""affinity_mix under autograd, autocast and torch.compile: gradients, their bits, and what is refused."""

import importlib

import pytest
import torch
from glomo_kernels import affinity_graph, affinity_mix, graph_mix
from glomo_kernels.affinity_mix import _forward
from glomo_kernels.scores import KEEP
from kernel_oracle import gradients, leaves
from test_affinity_mix import KINDS, OP, REFUSED, both, compare, make, split

__all__ = ["OP", "REFUSED"]  # for conftest.py: see there
pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_dtypes_may_differ(backend, dtype):
    """As for torch's own attention: a projection gives half precision there, and a parameter is float32."""
    q, k, v = torch.randn(3, 2, 2, 9, 4)
    with torch.autocast("cpu", dtype=dtype):
        mixed = affinity_mix(q, k.to(dtype), v)
        assert torch.equal(
            affinity_graph(q, k.to(dtype)).dense(), affinity_graph(q.to(dtype), k.to(dtype)).dense()
        )
        with pytest.raises(ValueError, match=r"k must be torch\.float64"):
            affinity_mix(q.double(), k.to(dtype), v)
    assert torch.equal(mixed, affinity_mix(q.to(dtype), k.to(dtype), v.to(dtype)))
    with pytest.raises(ValueError, match=rf"v must be {dtype}"):
        affinity_mix(q.to(dtype), k.to(dtype), v)


@pytest.mark.parametrize("case", KINDS)
def test_gradcheck(backend, case):
    with_theta, options = split(case)
    q, k, v, theta = leaves(*make(5), dtype=torch.float64)
    inputs = (q, k, v, theta) if with_theta else (q, k, v)
    options["lengths"] = torch.tensor([5, 0, 3])
    assert torch.autograd.gradcheck(lambda *x: affinity_mix(*x, **options), inputs)


def test_the_gradient_of_a_sum(backend):
    """It is one number for all, without steps from one to the next."""
    q, k, v, theta = inputs = leaves(*make(12), dtype=torch.float64)
    graph = affinity_graph(q, k, theta)
    for out in (affinity_mix(*inputs), graph.weights, graph_mix(graph.detach(), v[0, 0, :2, 0], v[:, 0])):
        plain, of_sum = (
            torch.autograd.grad(x, inputs, y, retain_graph=True, materialize_grads=True)
            for x, y in ((out, torch.ones_like(out)), (out.sum(), None))
        )
        torch.testing.assert_close(of_sum, plain)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", ["threshold", "square", "topk"])
def test_scores_that_are_kept_and_computed_again_give_the_same_gradients(backend, monkeypatch, case, causal):
    with_theta, options = split(case)
    inputs = leaves(*make(150, width=40, values=30), dtype=torch.float32)
    inputs = inputs if with_theta else inputs[:3]
    module = importlib.import_module("glomo_kernels.affinity_mix")
    results = []
    for keep in ("roots", "nothing"):
        monkeypatch.setattr(module, "_keep", lambda *x, keep=keep: keep)
        results.append(gradients(affinity_mix(*inputs, **options, causal=causal), inputs))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["threshold", "square", "topk", "topk per sample"])
def test_gradients_of_the_edges_that_are_kept(backend, monkeypatch, case, dtype):
    """A bit for each score: those of edges are computed again by themselves, which may round in another way."""
    with_theta, options = split(case)
    q, k, v, theta = make(150, width=70, values=30)
    theta = theta + torch.linspace(0, 30, 150)  # rows of many edges, of few, and of none
    if case == "topk per sample":
        options["topk"] = torch.tensor([1, 70, 200])  # most of the keys of a tile, and not all
    for keep in ("edges", "roots"):
        monkeypatch.setattr(importlib.import_module("glomo_kernels.affinity_mix"), "_keep", lambda *x: keep)  # noqa: B023
        options["lengths"] = torch.tensor([150, 140, 3])
        compare(both((q, k, v, theta), dtype, with_theta, options))


def test_a_row_without_weight_has_none_in_the_backward_pass(monkeypatch):
    """Row 27's only score is theta, but for rounding: where it is no edge, nothing that lay in the place of the bits
    may make it one. Its block goes over to bits at row 10, whose root has those of row 27 set."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    monkeypatch.setattr(importlib.import_module("glomo_kernels.affinity_mix"), "_keep", lambda *x: "roots")
    heads = 60
    q, k = torch.zeros(2, 1, heads, 130, 64)
    k[:, :, 3], k[:, :, 100] = torch.randn(2, 1, heads, 64)
    q[:, :, 10], q[:, :, 70] = k[:, :, 3], k[:, :, 100]
    q[:, :, 27] = k[:, :, 100] + torch.randn(1, heads, 64) / 8
    theta = torch.full((1, heads, 130), 1e6)
    theta[:, :, 10] = k[:, :, 3].square().sum(-1) - 1.5
    theta[:, :, 27] = (q[:, :, 27].double() * k[:, :, 100]).sum(-1)
    theta[:, :, 70] = 1
    inputs = leaves(q, k, torch.randn(1, heads, 130, 8), theta, dtype=torch.float32)
    out, stats = affinity_mix(*inputs, causal=False, return_stats=True)
    assert (stats.edges[:, :, 10] == 1).all() and (stats.edges[:, :, 70] >= 1).all()
    (dv,) = torch.autograd.grad(out[:, :, 27].sum(), inputs[2])
    without = stats.edges[:, :, 27] == 0
    assert 10 < without.sum() < 50
    assert not dv[without].any()


@pytest.mark.parametrize("keep", KEEP)
def test_a_sum_beyond_float32_gives_no_gradient_that_is_nan(backend, monkeypatch, keep):
    """Squares of 1e38 are numbers of float32, four of them are not."""
    monkeypatch.setattr(importlib.import_module("glomo_kernels.affinity_mix"), "_keep", lambda *x: keep)
    q, k, v, theta = make(17)
    q, k = torch.full_like(q, 2e9), torch.full_like(k, 1e9)
    inputs = leaves(q, k, v * 1e-3, theta, dtype=torch.float32)
    out = affinity_mix(*inputs)
    for name, gradient in zip(("dq", "dk", "dv", "dtheta"), gradients(out, inputs), strict=True):
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("edges", ["few", "all of a document"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_in_a_row_spoils_the_gradient_of_no_other(backend, dtype, edges):
    """Row 150 is worked on before row 86, by the same thread in the same place."""
    torch.set_num_threads(1)
    segments = None if edges == "few" else (torch.arange(200) >= 70).long().expand(3, -1)
    q, k, v, theta = make(200, heads=1)
    q[:, :, 150] = torch.nan
    inputs = leaves(q, k, v, theta.abs() + (3 if edges == "few" else -100), dtype=dtype)
    dq, _, _, dtheta = gradients(affinity_mix(*inputs, causal=False, segments=segments), inputs)
    spoiled = torch.arange(200) == 150
    assert torch.equal(dq.isnan().any(-1)[0, 0], spoiled)
    assert torch.equal(dtheta.isnan()[0, 0], spoiled)


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("case", ["threshold", "topk"])
def test_nan_in_a_key_spoils_the_gradients_of_the_rows_that_see_it(monkeypatch, case, keep):
    """And those of no other, where edges are few: the key before it ends in the midst of a register."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    monkeypatch.setattr(importlib.import_module("glomo_kernels.affinity_mix"), "_keep", lambda *x: keep)
    with_theta, options = split(case)
    q, k, v, theta = make(150, width=70)
    k[:, :, 100] = torch.nan
    inputs = leaves(q, k, v, theta.abs() + 12, dtype=torch.float32)
    inputs = inputs if with_theta else inputs[:3]
    dq = gradients(affinity_mix(*inputs, **options), inputs)[0]
    assert torch.equal(dq.isnan().any(-1), (torch.arange(150) > 100).expand(3, 2, -1))


@pytest.mark.parametrize("case", ["threshold", "topk"])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, case):
    """Several blocks per head, fewer heads than threads and more; again and again."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    with_theta, options = split(case)
    inputs = leaves(*make(300, width=20, values=17), dtype=torch.float32)
    inputs = inputs if with_theta else inputs[:3]
    runs = []
    for threads in (1, 2, 3, 8, 8, 8):
        torch.set_num_threads(threads)
        out = affinity_mix(*inputs, **options)
        runs.append([out.detach(), *gradients(out, inputs)])
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

    @pytest.mark.parametrize("keep", KEEP)
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("units", [5, 129])
def test_values_without_width_have_gradients_of_zero(backend, units, dtype):
    inputs = leaves(*make(units, values=0), dtype=dtype)
    out = affinity_mix(*inputs)
    assert out.shape == (3, 2, units, 0)
    for x, gradient in zip(inputs, gradients(out, inputs), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


def test_a_count_of_zero_where_nobody_could_look_at_it(backend):
    """Compiled, its tensor is not read: it counts as one."""
    q, k, v, _ = (x.float() for x in make(9))
    step = torch.compile(affinity_mix, fullgraph=True, backend="aot_eager")
    none = step(q, k, v, kind="topk", topk=torch.tensor([0, 2, 0]))
    torch.testing.assert_close(none, affinity_mix(q, k, v, kind="topk", topk=torch.tensor([1, 2, 1])))


def test_spans_beyond_the_keys_where_nobody_could_look_at_positions(backend):
    q, k, v, _ = (x.float() for x in make(9))
    results = []
    for begin, end in ((0, 9), (-70, 700)):
        spans = torch.tensor([begin, end]).expand(3, 9, 2).contiguous()
        mixed = torch.ops.glomo.affinity_mix(q, k, v, None, spans, None, "relu", False, "nothing")
        results.append([mixed[0], *torch.ops.glomo.affinity_graph(q, k, None, spans, None, "relu", 0, True)])
    torch.testing.assert_close(*results, rtol=0, atol=0)
