"""What torch does with the ops as operators: export, and the transforms that they refuse."""

import pytest
import torch
from glomo_kernels import affinity_graph, affinity_mix, decoder_loss, graph_mix
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def inputs(units, lengths):
    q, k, v = (torch.randn(2, 2, units, 4) for _ in range(3))
    return q, k, v, torch.randn(2, 2, units), torch.tensor(lengths)


class Mix(torch.nn.Module):
    def forward(self, q, k, v, theta, lengths):
        return affinity_mix(q, k, v, theta, lengths=lengths)


class Alone(torch.nn.Module):
    def forward(self, x, lengths):
        return affinity_mix(x, x, x, lengths=lengths)


class Loss(torch.nn.Module):
    def forward(self, hidden, weight, target):
        return decoder_loss(hidden, weight, target)


@pytest.mark.parametrize(
    "module,first,second",
    [
        (Mix(), inputs(5, [5, 3]), inputs(5, [2, 0])),
        (
            Loss(),
            (torch.randn(3, 4), torch.randn(7, 4), torch.tensor([0, 6, -100])),
            (torch.randn(3, 4), torch.randn(7, 4), torch.tensor([1, 2, 3])),
        ),
    ],
)
def test_export(module, first, second):
    exported = torch.export.export(module, first)
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any(name.startswith("glomo.") for name in names)
    for arguments in (first, second):
        torch.testing.assert_close(exported.module()(*arguments), module(*arguments))


def test_backward_through_an_export_for_inputs_without_gradients_is_refused():
    hidden, weight, target = torch.randn(3, 4), torch.randn(7, 4), torch.tensor([0, 6, 2])
    exported = torch.export.export(Loss(), (hidden, weight, target)).module()
    with pytest.raises(RuntimeError, match="exported for inputs without gradients; export it with"):
        exported(hidden.requires_grad_(), weight, target).backward()
    again = torch.export.export(Loss(), (hidden, weight, target)).module()
    again(hidden, weight, target).backward()
    assert hidden.grad is not None


class MixStats(torch.nn.Module):
    def forward(self, q, k, v, theta, lengths):
        mixed, stats = affinity_mix(q, k, v, theta, lengths=lengths, return_stats=True)
        return mixed, stats.live


@pytest.mark.parametrize("module", [Mix(), MixStats()])
def test_export_with_any_number_of_units(module):
    units = torch.export.Dim("units", min=65, max=4096)
    shapes = ({2: units}, {2: units}, {2: units}, {2: units}, None)
    exported = torch.export.export(module, inputs(130, [130, 3]), dynamic_shapes=shapes)
    for n in (65, 200):
        arguments = inputs(n, [n, n - 4])
        torch.testing.assert_close(exported.module()(*arguments), module(*arguments))


class Layer(torch.nn.Module):
    """Parameters, so that the op has a backward pass to keep something for."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return affinity_mix(self.q(x)[:, None], self.k(x)[:, None], self.v(x)[:, None])


def test_export_of_a_layer_with_parameters_and_any_number_of_units():
    layer, units = Layer(), torch.export.Dim("units", min=65, max=4096)
    exported = torch.export.export(layer, (torch.randn(2, 130, 4),), dynamic_shapes=({1: units},)).module()
    for n in (65, 900):  # more is kept of the one than of the other
        x = torch.randn(2, n, 4)
        torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize("dynamic", [True, None])
def test_compiled_layers_learn_from_any_number_of_units(dynamic):
    """None: sizes vary from the second call on that has others."""
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (9, 40, 200, 900, 1):
        x = torch.randn(2, n, 4)
        grads = [
            torch.autograd.grad(module(x).square().sum(), list(layer.parameters()))
            for module in (compiled, layer)
        ]
        torch.testing.assert_close(*grads)


def test_export_with_any_number_of_samples():
    class Packed(torch.nn.Module):
        def forward(self, q, segments):
            return affinity_mix(q, q, q, segments=segments), affinity_graph(q, q, segments=segments).weights

    def packed(batch):
        return torch.randn(batch, 2, 6, 4), (torch.arange(6) // 2).repeat(batch, 1)

    batch = torch.export.Dim("batch")
    exported = torch.export.export(Packed(), packed(3), dynamic_shapes=({0: batch}, {0: batch}))
    arguments = packed(5)
    torch.testing.assert_close(exported.module()(*arguments), Packed()(*arguments))


def test_shapes_without_values():
    """Tensors on the meta device."""
    q, k, v, theta, _ = (x.to("meta") for x in inputs(5, [5, 5]))
    segments = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    for options in (
        {"theta": theta},
        {"theta": 0.5},
        {"kind": "topk", "topk": 2},
        {"kind": "softmax", "segments": segments},
    ):
        assert affinity_mix(q, k, v, **options).shape == v.shape
    assert decoder_loss(q[0, 0], q[1, 0], torch.zeros(5, dtype=torch.int64, device="meta")).shape == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_is_traced_has_the_sizes_dtypes_and_strides_of_the_results(dtype):
    """Of every operator, for inputs that lie across, and theta and weights in dtypes of their own."""
    ops = torch.ops.glomo

    def results(place):
        q, k, v = (place(torch.randn(2, n, 5, 2, dtype=dtype)).permute(0, 3, 2, 1) for n in (4, 4, 3))
        theta, weights = place(torch.randn(2, 5, 2).half()).mT, place(torch.ones(2).half())
        spans, target = place(torch.tensor([[[0, 4]] * 5] * 2)), place(torch.arange(5))
        mixed = ops.affinity_mix(q, k, v, theta, spans, None, "relu", True, "roots")
        used = mixed[0], mixed[1], mixed[4], mixed[5]
        found = [*mixed, *ops.affinity_mix_backward(v, q, k, v, theta, spans, None, *used, "relu", "roots")]
        values, offsets, columns = ops.affinity_graph(q, k, theta, spans, None, "relu", 3, True)
        edges = offsets, columns, values
        found += ops.affinity_graph_backward(values, q, k, theta, spans, None, *edges, "relu", 3, True)
        loss, *slopes = ops.decoder_loss(q[0, 0], k[0, 0], target, -100, True)
        found += [loss, *slopes, *ops.decoder_loss_backward(loss, q[0, 0], k[0, 0], *slopes)]
        found += [offsets, ops.graph_apply(*edges, 2, 0, v), ops.graph_apply_backward(v, *edges, 2, 0)]
        for heads, w in ((2, weights), (1, place(torch.ones(3).half()))):
            found.append(ops.graph_mix(*edges, 2, heads, w, v[:, 0]))
            found += ops.graph_mix_backward(v[:, 0], *edges, 2, heads, w, v[:, 0], True, True)
        return values.dtype, columns.dtype, [(x.shape, x.dtype, x.stride()) for x in found]

    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        traced = results(mode.from_tensor)
    assert traced == results(lambda x: x)


def test_forward_mode_is_refused():
    """Where no input requires a gradient torch would answer with zeros."""
    q, k, v, theta, _ = inputs(5, [5, 5])
    graph = affinity_graph(q, k)
    functions = [
        lambda x: affinity_mix(x, k, v, theta),
        lambda x: affinity_graph(x, k).weights,
        lambda x: graph_mix(graph, torch.ones(2), x[:, 0]),
        lambda x: decoder_loss(x[0, 0], torch.ones(7, x.shape[-1]), torch.arange(5)),
    ]
    q = q.detach()
    for function in functions:
        with pytest.raises(RuntimeError, match="forward-mode derivatives are not implemented"):
            torch.func.jvp(function, (q,), (torch.ones_like(q),))
        with torch.autograd.forward_ad.dual_level():
            function(q)  # without a tangent


@pytest.mark.parametrize("how", ["compiled", "exported", "dual tensors to a compiled one"])
def test_forward_mode_is_refused_without_the_python_code_around_the_op(how):
    x, _, _, _, lengths = inputs(5, [5, 5])
    module, ones = Alone(), torch.ones_like(x)

    def jvp(x):
        return torch.func.jvp(lambda x: module(x, lengths), (x,), (ones,))[1]

    # torch 2.14 refuses dual tensors to compiled code by itself
    with pytest.raises(
        RuntimeError, match=r"affinity_mix: forward-mode derivatives are not|carry a forward-mode"
    ):
        if how == "compiled":
            torch.compile(jvp, fullgraph=True, backend="aot_eager")(x)
        elif how == "exported":
            module = torch.export.export(module, (x, lengths)).module()
            jvp(x)
        else:
            with torch.autograd.forward_ad.dual_level():
                compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
                compiled(torch.autograd.forward_ad.make_dual(x, ones), lengths)


def test_transforms_of_torch_func_are_refused():
    graph = affinity_graph(*inputs(5, [5, 5])[:2]).detach()
    h = torch.randn(2, 5, 6)
    for transform in (torch.func.grad, torch.func.jacrev, lambda f: lambda x: torch.func.vjp(f, x)):
        with pytest.raises(
            RuntimeError, match=r"graph_mix: torch\.func's grad, vjp and jacrev are not implemented"
        ):
            transform(lambda x: graph_mix(graph, torch.ones(2), x).sum())(h)


def test_sizes_that_vary_may_become_zero():
    """graph_mix checks the graph that affinity_graph gave while both are traced."""

    @torch.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    def both(q, w, h):
        return graph_mix(affinity_graph(q, q).detach(), w, h)

    for units in (5, 0):
        assert both(torch.randn(1, 2, units, 4), torch.ones(2), torch.randn(1, units, 3)).shape == (
            1,
            units,
            3,
        )


def test_sizes_that_vary_beside_fixed_ones():
    """A parameter has a fixed shape; the features' sizes vary."""
    weights, theta = torch.nn.Parameter(torch.ones(6)), torch.ones(2, 4, 5)
    torch._dynamo.mark_static(theta)

    @torch.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    def both(q, theta, h):
        return affinity_mix(q, q, q, theta), graph_mix(affinity_graph(q, q), weights, h, heads=2)

    q, h = torch.randn(2, 4, 5, 4), torch.randn(2, 5, 3)
    mixed, y = both(q, theta, h)
    torch.testing.assert_close(mixed, affinity_mix(q, q, q, 1.0))
    torch.testing.assert_close(y, graph_mix(affinity_graph(q, q), weights, h, heads=2))


def test_vmap_is_refused():
    samples = torch.randn(3, 2, 2, 5, 4)
    with pytest.raises(RuntimeError, match="affinity_mix: vmap is not implemented; the op takes a batch"):
        torch.vmap(lambda x: affinity_mix(x, x, x))(samples)
    graph = affinity_graph(*inputs(5, [5, 5])[:2])
    with pytest.raises(RuntimeError, match="graph_mix: vmap is not implemented"):
        torch.vmap(lambda h: graph_mix(graph, torch.ones(2), h))(torch.randn(3, 2, 5, 6))
    with pytest.raises(RuntimeError, match="decoder_loss: vmap is not implemented"):
        torch.vmap(lambda h: decoder_loss(h, torch.ones(7, 4), torch.tensor([0, 6])))(torch.randn(3, 2, 4))
    with pytest.raises(RuntimeError, match="decoder_loss: vmap is not implemented"):
        torch.vmap(lambda t: decoder_loss(torch.ones(2, 4), torch.ones(7, 4), t))(torch.tensor([[0, 6]] * 3))
    with pytest.raises(RuntimeError, match="affinity_mix: vmap is not implemented"):
        torch.vmap(lambda n: affinity_mix(*[samples[0]] * 3, lengths=n))(torch.tensor([[5, 3]] * 3))
