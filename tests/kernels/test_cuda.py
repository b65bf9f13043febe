"""affinity_graph and graph_mix in CUDA, on a GPU or, with less of everything, in the emulator on a CPU.

The cases are those of test_affinity_graph.py and test_graph_mix.py, which run here with their tensors on the device;
what is added is what only this backend has: half precision, its two searches for the largest, its parts of rows.
"""

import itertools

import cuda_emulator
import pytest
import test_affinity_graph as graph_cases
import test_graph_mix as mix_cases
import torch
from glomo_kernels import SparseGraph, affinity_graph, dispatch, graph_apply, graph_mix
from glomo_kernels.affinity_graph import cuda as graph_backend
from kernel_oracle import leaves

pytestmark = pytest.mark.usefixtures("nan_memory")
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Forces the backend and sends the tensors of the other modules' tests to the device, and their results back."""
    if request.param == "emulator":
        cuda_emulator.use(monkeypatch)
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    there = torch.device("cpu" if request.param == "emulator" else request.param)
    monkeypatch.setattr(graph_cases, "affinity_graph", moving(affinity_graph, there))
    for function in (graph_mix, graph_apply):
        monkeypatch.setattr(mix_cases, function.__name__, moving(function, there))
    return there


def moving(function, there):
    def moved(x):
        return x.to(there) if isinstance(x, torch.Tensor | SparseGraph) else x

    def call(*arguments, **options):
        result = function(*map(moved, arguments), **{name: moved(x) for name, x in options.items()})
        return result.to("cpu")

    return call


def own_cases(function):
    """The arguments that a test function's own marks give it, without those for a backend, as dicts."""
    axes = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name != "parametrize" or mark.args[0] == "threads":
            continue
        names = [name.strip() for name in mark.args[0].split(",")]
        values = [value if len(names) > 1 else (value,) for value in mark.args[1]]
        axes.append([dict(zip(names, value, strict=True)) for value in values])
    for chosen in itertools.product(*axes):
        case = {name: value for part in chosen for name, value in part.items()}
        if case.pop("backend", "cpp") == "cpp":
            yield case


# The emulator runs every n-th case; on a GPU all of them run.
SHARED = {
    graph_cases.test_agrees_with_dense_formula: 5,
    graph_cases.test_bfloat16_inputs: 1,
    graph_cases.test_widths: 1,
    graph_cases.test_non_contiguous_inputs: 1,
    graph_cases.test_no_edges_at_all: 1,
    graph_cases.test_empty_batch_and_no_units: 1,
    graph_cases.test_ties_go_to_the_lowest_column: 1,
    graph_cases.test_not_finite_scores_do_not_crash: 1,
    graph_cases.test_second_derivative_is_refused: 1,
    mix_cases.test_agrees_with_dense_formula: 1,
    mix_cases.test_products_agree_with_formed_products: 1,
    mix_cases.test_graph_apply: 1,
    mix_cases.test_only_the_wanted_gradients: 1,
    mix_cases.test_features_without_width: 1,
    mix_cases.test_no_samples_and_no_units: 1,
    mix_cases.test_weights_in_another_dtype_than_the_features: 1,
    mix_cases.test_non_contiguous_inputs: 1,
    mix_cases.test_no_edges_at_all: 1,
    mix_cases.test_second_derivative_is_refused: 1,
}


def shared_cases():
    for function, step in SHARED.items():
        for number, case in enumerate(own_cases(function)):
            name = "-".join([function.__module__[5:], function.__name__[5:], *map(str, case.values())])
            if number % step == 0:
                yield pytest.param("emulator", function, case, id=f"emulator-{name}")
            yield pytest.param("cuda", function, case, id=f"cuda-{name}", marks=pytest.mark.gpu)


@pytest.mark.parametrize("device,function,case", list(shared_cases()), indirect=["device"])
def test_shared_case(device, function, case):
    function(backend="cuda", **case)


def rounded(results, dtype):
    """Errors at most twice those of rounding the exact result; plain PyTorch in half precision has other edges."""
    results[2] = [x.to(dtype) for x in results[1]]
    return results


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("keep,renormalise", graph_cases.KEEPS)
@pytest.mark.parametrize("case", ["threshold", "square", "topk"])
def test_affinity_graph_in_half_precision(device, case, keep, renormalise, dtype):
    options = dict(graph_cases.KINDS[case])
    with_theta = options.pop("theta", False)
    inputs = graph_cases.make(70, heads=1, width=20)
    results = graph_cases.both(inputs, dtype, with_theta, options, keep, renormalise)
    graph_cases.compare(rounded(results, dtype))


@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("width", [1, 6, 40, 300])
def test_graph_mix_in_float16(device, width, per_unit):
    features = torch.randn(3, 21, width, dtype=torch.float64)
    weights = mix_cases.weights_of(per_unit, 3, 21, 4)
    mix_cases.compare(
        rounded(mix_cases.both(mix_cases.make(21), weights, features, torch.float16), torch.float16)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "kind,count", [("relu", 5), ("relu", 32), ("square", 33), ("square", 100), ("topk", 60)]
)
def test_exact_choice_among_many_ties(device, monkeypatch, kind, count, dtype):
    """Scores are small whole numbers, exact in every order of summation: the edges are those of the reference."""
    q, k = (torch.randint(-2, 3, (2, 1, 140, 7), device=device).to(dtype) for _ in range(2))
    options = {"kind": kind, "causal": False, "lengths": torch.tensor([140, 77], device=device)}
    options |= {"topk": torch.tensor([count, 3], device=device)} if kind == "topk" else {"keep": count}
    graph = affinity_graph(q, k, **options)
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    expected = affinity_graph(q, k, **options)
    assert torch.equal(graph.offsets, expected.offsets) and torch.equal(graph.columns, expected.columns)
    torch.testing.assert_close(graph.weights, expected.weights)


@pytest.mark.parametrize("case", ["threshold", "topk"])
def test_gradients_of_all_scores_in_parts_of_rows(device, monkeypatch, case):
    """keep without renormalisation: the same gradients, however many rows are handled at a time."""
    monkeypatch.setattr(graph_backend, "WIDE_ENTRIES", 1)
    options = dict(graph_cases.KINDS[case])
    with_theta = options.pop("theta", False)
    options |= {"causal": False, "lengths": torch.tensor([150, 70, 3])}
    inputs = graph_cases.make(150, heads=1)
    graph_cases.compare(graph_cases.both(inputs, torch.float32, with_theta, options, 40, False))


def test_only_rows_that_do_not_fit_are_copied():
    x = torch.randn(2, 3, 5, 8)
    assert graph_backend._aligned(x) is x
    for other in (x[..., :7], x.mT, torch.cat([x.flatten(), x[0, 0, 0]])[1:-7].view_as(x)):
        filled = graph_backend._aligned(other)
        width = other.shape[-1]
        assert filled.is_contiguous() and filled.data_ptr() % 16 == 0 and filled.shape[-1] % 4 == 0
        assert torch.equal(filled[..., :width], other) and not filled[..., width:].any()


def test_packed_documents(device, monkeypatch):
    q, k, theta = (x.float().to(device) for x in graph_cases.make(150, heads=1))
    segments = (torch.arange(150, device=device) // 37).expand(3, 150)
    graph = affinity_graph(q, k, theta, segments=segments, keep=4)
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    expected = affinity_graph(q, k, theta, segments=segments, keep=4)
    assert torch.equal(graph.columns, expected.columns)
    torch.testing.assert_close(graph.weights, expected.weights)


def runs(device, monkeypatch):
    """Once per run: 20 on a GPU; in the emulator in several orders of the threads, which shows races."""
    if device.type == "cuda":
        yield from range(20)
        return
    yield None
    for seed in range(3):
        monkeypatch.setenv("GLOMO_EMULATOR_ORDER", str(seed))
        yield seed


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("options", [{}, {"keep": 9, "renormalise": False}, {"keep": 50}], ids=str)
def test_affinity_graph_is_the_same_on_every_run(device, monkeypatch, options, dtype):
    inputs = leaves(*(x.to(device) for x in graph_cases.make(150, heads=1, width=24)), dtype=dtype)
    results = []
    for _ in runs(device, monkeypatch):
        graph = affinity_graph(*inputs, **options)
        upstream = torch.linspace(-1, 1, len(graph.weights), device=device)
        results.append([graph.columns, graph.weights, *torch.autograd.grad(graph.weights, inputs, upstream)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_graph_mix_is_the_same_on_every_run(device, monkeypatch, dtype):
    graph = mix_cases.sparse(mix_cases.make(70).float()).to(device)
    inputs = leaves(torch.randn(3, 70, 6).to(device), torch.randn(3, 70, 40).to(device), dtype=dtype)
    results = []
    for _ in runs(device, monkeypatch):
        out = graph_mix(graph, *inputs, heads=2)
        results.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
