import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from glomo_kernels import affinity_graph, scores
from glomo_kernels.affinity_graph import _forward
from kernel_oracle import assert_no_worse, assert_no_worse_on_the_whole, dense_weights, gradients, leaves

OP = "affinity_graph"
pytestmark = pytest.mark.usefixtures("nan_memory")

KINDS = {
    "relu": {"kind": "relu"},
    "threshold": {"kind": "relu", "theta": True},
    "square": {"kind": "square"},
    "topk": {"kind": "topk", "topk": torch.tensor([1, 4, 200])},
    "softmax": {"kind": "softmax"},
}
KEEPS = [(None, True), (2, True), (2, False)]
SIZES = [(1, [1, 0, 1]), (63, [63, 0, 17]), (130, None)]
# C++ refuses softmax, of which every weight is positive: test_dispatch.py.
CASES = [(b, case) for b in ("cpp", "reference") for case in KINDS if (b, case) != ("cpp", "softmax")]


def make(units, heads=2, width=5):
    q = torch.randn(3, heads, units, width, dtype=torch.float64)
    k = torch.randn(3, heads, units, width, dtype=torch.float64)
    return q, k, torch.randn(3, heads, units, dtype=torch.float64)


def both(inputs, dtype, with_theta, options, keep, renormalise):
    results = []
    for ours, used in ((True, dtype), (False, torch.float64), (False, dtype)):
        q, k, theta = leaves(*leaves(*inputs, dtype=dtype), dtype=used)
        wanted = [q, k, theta] if with_theta else [q, k]
        bias = theta if with_theta else None
        if ours:
            graph = affinity_graph(q, k, bias, **options, keep=keep, renormalise=renormalise)
            check_layout(graph, q)
            out = graph.dense()
        else:
            out = dense_weights(q, k, bias, **options, keep=keep, renormalise=renormalise)
        results.append([out, *gradients(out, wanted)])
    return results


def check_layout(graph, q):
    assert graph.shape == tuple(q.shape[:3])
    assert graph.offsets.dtype == torch.int64 and graph.columns.dtype == torch.int32
    assert graph.weights.dtype == scores.compute_dtype(q)
    assert graph.offsets[0] == 0 and graph.offsets[-1] == len(graph.columns) == len(graph.weights)
    assert (graph.weights > 0).all()
    rows = graph.rows()
    ascending = graph.columns.diff() > 0
    assert (ascending | (rows.diff() > 0)).all()


def compare(results):
    for name, got, exact, naive in zip(("weights", "dq", "dk", "dtheta"), *results, strict=False):
        assert_no_worse(name, got, exact, naive)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("keep,renormalise", KEEPS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("units,lengths", SIZES)
@pytest.mark.parametrize("backend,case", CASES, indirect=["backend"])
def test_agrees_with_dense_formula(backend, case, units, lengths, causal, keep, renormalise, dtype):
    options = dict(KINDS[case])
    with_theta = options.pop("theta", False)
    lengths = None if lengths is None else torch.tensor(lengths)
    options = {**options, "lengths": lengths, "causal": causal}
    compare(both(make(units), dtype, with_theta, options, keep, renormalise))


def test_bfloat16_inputs(backend):
    inputs = make(40)
    compare(both(inputs, torch.bfloat16, True, {"lengths": torch.tensor([40, 0, 9])}, None, True))


@pytest.mark.parametrize("backend", ["reference"], indirect=True)
@pytest.mark.parametrize("elements", [1, 40, 300])
@pytest.mark.parametrize("keep,renormalise", [*KEEPS, (500, True)])
def test_tiling_does_not_matter(backend, monkeypatch, elements, keep, renormalise):
    monkeypatch.setattr(scores, "TILE_ELEMENTS", elements)
    options = {"lengths": torch.tensor([11, 4, 0])}
    compare(both(make(11), torch.float64, True, options, keep, renormalise))


@pytest.mark.parametrize("width", [1, 3, 16, 33, 64])
def test_widths(backend, width):
    compare(both(make(50, width=width), torch.float32, True, {}, None, True))


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e4])
@pytest.mark.parametrize("keep,renormalise", KEEPS)
def test_tiny_and_huge_scores(backend, keep, renormalise, size):
    q, k, theta = make(17)
    compare(both((q * size, k, theta * size), torch.float32, True, {}, keep, renormalise))


@pytest.mark.parametrize("offset", [0, 3])
def test_rows_of_hundreds_of_edges(monkeypatch, offset):
    """dk is a sum over all rows: added up one after the other, they miss twice PyTorch's error."""
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    q, k = (torch.randn(1, 1, 1500, 16, dtype=torch.float64) + offset for _ in range(2))
    results = both((q, k, q[..., 0]), torch.float32, False, {"kind": "square"}, None, True)
    for name, *numbers in zip(("weights", "dq", "dk"), *results, strict=True):
        assert_no_worse_on_the_whole(name, *numbers)


def test_same_edges_as_float32_reference(monkeypatch, backend):
    """Backends agree on which edges there are, at a size with several blocks of rows and panels of keys."""
    q, k, theta = (x.float() for x in make(257, width=8))
    graph = affinity_graph(q, k, theta, keep=7)
    monkeypatch.setenv("GLOMO_KERNELS", "reference")
    reference = affinity_graph(q, k, theta, keep=7)
    assert torch.equal(graph.offsets, reference.offsets)
    assert torch.equal(graph.columns, reference.columns)
    torch.testing.assert_close(graph.weights, reference.weights)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_result_for_every_number_of_threads(backend, threads):
    q, k, theta = leaves(*make(200, width=8), dtype=torch.float32)
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        graph = affinity_graph(q, k, theta, keep=9)
        results.append([graph.columns, graph.weights, *gradients(graph.weights, [q, k, theta])])
    for one, many in zip(*results, strict=True):
        if backend == "reference":  # torch's own matrix products decide
            torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(one, many)


def test_non_contiguous_inputs(backend):
    q, k, theta = make(12)
    strided = (q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT, theta.mT.contiguous().mT)
    assert not any(x.is_contiguous() for x in strided)
    results = []
    for tensors in ((q, k, theta), strided):
        tensors = [x.detach().requires_grad_() for x in tensors]
        graph = affinity_graph(*tensors, keep=3)
        results.append([graph.columns, graph.weights, *gradients(graph.weights, tensors)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_no_edges_at_all(backend):
    q, k, _ = leaves(*make(6), dtype=torch.float32)
    theta = torch.full((3, 2, 6), 1e6, requires_grad=True)
    graph = affinity_graph(q, k, theta)
    assert graph.columns.numel() == 0 and (graph.offsets == 0).all()
    for gradient in gradients(graph.dense(), [q, k, theta]):
        assert (gradient == 0).all()


def test_empty_batch_and_no_units(backend):
    for shape in ((0, 2, 4, 5), (3, 2, 0, 5)):
        graph = affinity_graph(torch.zeros(shape), torch.zeros(shape))
        assert graph.columns.numel() == 0
        assert graph.offsets.tolist() == [0] * (shape[0] * shape[1] * shape[2] + 1)


def test_ties_go_to_the_lowest_column(backend):
    q, k = torch.ones(1, 1, 6, 1), torch.tensor([1.0, 2.0, 2.0, 1.0, 2.0, 9.0]).view(1, 1, 6, 1)
    last = affinity_graph(q, k, keep=2).dense()[0, 0, 5]
    torch.testing.assert_close(last, torch.tensor([0, 0.5, 0.5, 0, 0, 0]))
    last = affinity_graph(q, k, keep=4).dense()[0, 0, 5]
    torch.testing.assert_close(last, torch.tensor([1.0, 4.0, 4.0, 0.0, 4.0, 0.0]) / 13)
    last = affinity_graph(q, -k, kind="topk", topk=2).dense()[0, 0, 5]
    torch.testing.assert_close(last, torch.tensor([0, 0.5, 0.5, 0, 0, 0]))


def test_ties_of_softmax():
    q, k = torch.randint(-2, 3, (2, 3, 2, 60, 5), dtype=torch.float64)
    expected = dense_weights(q, k, kind="softmax", keep=4)
    torch.testing.assert_close(affinity_graph(q, k, kind="softmax", keep=4).dense(), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_scores_do_not_crash(backend, value):
    q, k, _ = make(70)
    q[0, 0, 5] = value
    for keep in (None, 3):
        graph = affinity_graph(q, k, keep=keep)
        assert int(graph.columns.min()) >= 0 and int(graph.columns.max()) < 70


def test_memory_follows_the_edges_not_the_number_of_heads():
    """2,000 small graphs, in a process whose address space could not hold a piece of full size for each."""
    code = """
import resource, torch
from glomo_kernels import affinity_graph
q = torch.randn(2000, 1, 10, 4)
affinity_graph(q[:1], q[:1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)
print(affinity_graph(q, q).columns.numel())
"""
    environment = {
        **os.environ,
        "GLOMO_KERNELS": "cpp",
        "OMP_NUM_THREADS": "2",  # the stacks of many would not fit, either
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 40_000 < int(done.stdout) < 50_000  # half of 2,000 x 45 pairs


@pytest.mark.parametrize("kind", ["relu", "square"])
@pytest.mark.parametrize("keep,renormalise", KEEPS)
def test_a_key_with_nan_is_as_one_of_zeros(monkeypatch, keep, renormalise, kind):
    monkeypatch.setenv("GLOMO_KERNELS", "cpp")
    results = []
    for value in (torch.nan, 0):
        torch.manual_seed(0)
        q, k, _ = make(70)
        k[:, :, [5, 68]] = value
        inputs = leaves(q, k, dtype=torch.float32)
        graph = affinity_graph(*inputs, kind=kind, causal=False, keep=keep, renormalise=renormalise)
        results.append([graph.columns, graph.weights, *gradients(graph.weights, inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_keep_of_any_kind_of_whole_number(backend):
    q, k, _ = make(9)
    expected = affinity_graph(q, k, keep=3)
    for keep in (np.int64(3), torch.tensor(3)):
        assert torch.equal(affinity_graph(q, k, keep=keep).columns, expected.columns)


@pytest.mark.parametrize("keep,renormalise", KEEPS)
def test_gradcheck(backend, keep, renormalise):
    inputs = leaves(*make(5), dtype=torch.float64)
    options = {"lengths": torch.tensor([5, 0, 3]), "keep": keep, "renormalise": renormalise}
    assert torch.autograd.gradcheck(lambda *x: affinity_graph(*x, **options).weights, inputs)


def test_second_derivative_is_refused(backend):
    q, k, theta = leaves(*make(4), dtype=torch.float64)
    weights = affinity_graph(q, k, theta).weights
    (dq,) = torch.autograd.grad(weights.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="affinity_graph: second derivatives"):
        dq.sum().backward()


class TestRegistration:
    @pytest.fixture(autouse=True)
    def plain_memory(self, nan_memory):
        torch.use_deterministic_algorithms(False)

    def test_opcheck(self, backend):
        q, k, theta = leaves(*make(5), dtype=torch.float32)
        spans = torch.tensor([0, 4]).expand(3, 5, 2).clone()
        torch.library.opcheck(_forward.overload, (q, k, theta, spans, None, "relu", 2, True))

    @torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
    def test_compiles_as_one_graph(self, backend):
        lengths = torch.tensor([9, 2, 5])

        def step(q, k, theta):
            graph = affinity_graph(q * 1, k, theta, lengths=lengths, keep=3)
            return graph.columns + 1, graph.weights * 2

        inputs = leaves(*make(9), dtype=torch.float32)
        columns, weights = step(*inputs)
        compiled_columns, out = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
        assert torch.equal(columns, compiled_columns)
        torch.testing.assert_close(out, weights)
        torch.testing.assert_close(gradients(out, inputs), gradients(weights, inputs))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"k": torch.zeros(3, 2, 6, 5)}, r"k must be \(3, 2, 4, 5\) like q, got \(3, 2, 6, 5\)"),
        ({"q": torch.zeros(4, 5)}, r"q must be \[B, H, Tq, Dg\], got \(4, 5\)"),
        ({"keep": 0}, "keep must be a whole number from 1 on, or None for all edges, got 0"),
        ({"keep": 2**63}, "keep must be a whole number from 1 on"),
        ({"keep": 2.5}, "keep must be a whole number from 1 on, or None for all edges, got 2.5"),
        ({"keep": torch.tensor([3, 4])}, r"keep must be a whole number .* got tensor\(\[3, 4\]\)"),
        ({"keep": torch.tensor(2.0)}, r"keep must be a whole number .* got tensor\(2\.\)"),
        ({"theta": [1.0]}, r"theta must be a tensor or a number, got \["),
        ({"kind": "nearest"}, "kind must be one of"),
        ({"lengths": torch.tensor([1, 2, 5])}, r"lengths must lie in 0..T=4, got 1..5"),
        ({"theta": torch.zeros(3, 2, 5)}, r"theta must be \(3, 2, 4\)"),
        ({"kind": "topk", "theta": None}, "topk goes with kind 'topk' .* say how many edges a row keeps"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {"q": torch.zeros(3, 2, 4, 5), "k": torch.zeros(3, 2, 4, 5), "theta": torch.zeros(3, 2, 4)}
    affinity_graph(**good)
    with pytest.raises(ValueError, match="affinity_graph: " + message):
        affinity_graph(**{**good, **change})
