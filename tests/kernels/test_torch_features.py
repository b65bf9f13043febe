"""What the ops are to PyTorch's tools: the compiler, export, profilers."""

import io

import pytest
import torch
from glomo_kernels import AffinityStats, SparseGraph, affinity_graph, affinity_mix, decoder_loss, graph_mix


def _graph_of(x):
    return affinity_graph(x, x).detach()


OPS = {
    "AffinityMix": lambda x: affinity_mix(x, x, x),
    "AffinityGraph": lambda x: affinity_graph(x, x).weights,
    "GraphMix": lambda x: graph_mix(_graph_of(x), torch.ones(2), x[:, 0]),
    "DecoderLoss": lambda x: decoder_loss(x[0, 0], x[0, 1], torch.arange(5), reduction="sum"),
}


@pytest.mark.parametrize("name", OPS)
def test_the_name_of_the_op_is_in_its_gradient(name):
    """By which anomaly detection and profilers tell the ops apart."""
    assert OPS[name](torch.randn(1, 2, 5, 4, requires_grad=True)).grad_fn.name() == f"{name}Backward"


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("name", OPS)
def test_the_compiler_does_not_take_a_backward_pass_to_pieces(name, backend, monkeypatch):
    """It gives up on `backward`, and would go on with the Python functions that this calls."""
    if backend == "cpp":
        pytest.importorskip("glomo_kernels._cpu")
    monkeypatch.setenv("GLOMO_KERNELS", backend)
    compiled = []

    def record(graph, example):
        compiled.append(graph)
        return graph.forward

    loss = OPS[name](torch.randn(1, 2, 5, 4, requires_grad=True)).sum()
    torch.compile(lambda loss: loss.backward(), backend=record)(loss)
    assert not compiled


class Layer(torch.nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.weights = torch.nn.Parameter(torch.ones(6 if heads else 4))

    def forward(self, x):
        units = x.view(*x.shape[:2], 4, 4).transpose(1, 2)
        return graph_mix(affinity_graph(units, units).detach(), self.weights, x, heads=self.heads)


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("strict", [True, False])
def test_export_with_sizes_that_have_no_upper_bound(strict, heads):
    layer, units = Layer(heads), torch.export.Dim("units", min=65)
    exported = torch.export.export(
        layer, (torch.randn(2, 70, 16),), dynamic_shapes=({1: units},), strict=strict
    )
    for n in (90, 2100):
        x = torch.randn(2, n, 16)
        torch.testing.assert_close(exported.module()(x), layer(x))


class Parts(torch.nn.Module):
    def forward(self, graph, x):
        mixed = graph_mix(graph, torch.ones(2), x[:, 0])
        return affinity_graph(x, x, keep=2), affinity_mix(x, x, x, return_stats=True), mixed


def test_an_exported_program_that_takes_and_gives_graphs_and_statistics_can_be_saved():
    x, file = torch.randn(1, 2, 5, 4), io.BytesIO()
    graph = _graph_of(x)
    torch.export.save(torch.export.export(Parts(), (graph, x)), file)
    file.seek(0)
    found = torch.export.load(file).module()(graph, x)
    torch.testing.assert_close(found, Parts()(graph, x))
    assert isinstance(found[0], SparseGraph) and isinstance(found[1][1], AffinityStats)


def test_graphs_and_statistics_can_be_loaded_without_trust_in_the_file():
    x, file = torch.randn(1, 2, 5, 4), io.BytesIO()
    stored = _graph_of(x), affinity_mix(x, x, x, return_stats=True)[1]
    torch.save(stored, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    torch.testing.assert_close(found, stored)
    assert [type(part) for part in found] == [SparseGraph, AffinityStats]


@pytest.mark.parametrize("name", OPS)
def test_compiled_autograd_takes_the_backward_pass_whole(name):
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(OPS[name](x).square().sum(), x)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        OPS[name](x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_autocast_within_a_compiled_function():
    """torch 2.11's compiler knows fewer of the questions that one can ask about autocast."""
    x, features = torch.randn(1, 2, 5, 4), torch.randn(1, 5, 4)

    def both(x, features):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = affinity_mix(x.bfloat16(), x, x)
            return mixed, graph_mix(_graph_of(x), torch.ones(3), features, heads=1)

    torch.testing.assert_close(
        torch.compile(both, backend="aot_eager", fullgraph=True)(x, features), both(x, features)
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_refused(layout):
    """Of the one layout PyTorch does not even tell the shape."""
    x = torch.randn(1, 2, 5, 4)
    nested = torch.nested.nested_tensor([torch.randn(n, 4) for n in (5, 3)], layout=layout)
    functions = {
        "affinity_mix: v": lambda: affinity_mix(x, x, nested),
        "affinity_graph: theta": lambda: affinity_graph(x, x, nested),
        "graph_mix: features": lambda: graph_mix(_graph_of(x), torch.ones(2), nested),
        "decoder_loss: hidden": lambda: decoder_loss(nested, x[0, 0], torch.arange(5)),
    }
    for name, function in functions.items():
        with pytest.raises(ValueError, match=f"{name} must be a dense tensor, got a nested one: .*padded"):
            function()


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_distributed_tensors_are_refused_and_taken_by_their_local_parts(mesh):
    """torch would ask for tensors that the op makes itself to be distributed."""
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.experimental import local_map

    whole = torch.randn(2, 2, 5, 4)
    x = distribute_tensor(whole, mesh, [Shard(0)])
    graph, target = _graph_of(whole), torch.arange(5)
    functions = {
        "affinity_mix: q": lambda: affinity_mix(x, x, x),
        "affinity_graph: q": lambda: affinity_graph(x, x),
        "graph_mix: features": lambda: graph_mix(graph, torch.ones(2), x[:, 0]),
        "decoder_loss: hidden": lambda: decoder_loss(x[0, 0], x[0, 1], target),
    }
    for name, function in functions.items():
        with pytest.raises(ValueError, match=f"{name} must be .* got a DTensor: .*local_map"):
            function()
    local = local_map(affinity_mix, out_placements=[Shard(0)], device_mesh=mesh)
    torch.testing.assert_close(local(x, x, x).full_tensor(), affinity_mix(whole, whole, whole))
