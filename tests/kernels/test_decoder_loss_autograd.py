"""decoder_loss under autograd, autocast and torch.compile: which gradients there are, and their memory."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from glomo_kernels import decoder_loss
from glomo_kernels.decoder_loss import _forward
from kernel_oracle import gradients, leaves
from test_decoder_loss import OP, both, chunks_of, make

__all__ = ["OP"]  # for conftest.py: see there
pytestmark = pytest.mark.usefixtures("nan_memory")


def test_one_leaf_only(backend):
    hidden, weight, target = make(9)
    expected = both(hidden, weight, target, torch.float64)[1]
    w = weight.requires_grad_()
    torch.testing.assert_close(gradients(decoder_loss(hidden, w, target), [w])[0], expected[2])


@pytest.mark.parametrize("leaf", [0, 1, None])
def test_gradients_are_computed_where_somebody_may_ask_for_them(monkeypatch, leaf):
    asked = []

    def forward(*arguments):
        asked.append(arguments[-1])
        return _forward(*arguments)

    monkeypatch.setattr(importlib.import_module("glomo_kernels.decoder_loss"), "_forward", forward)
    inputs = torch.randn(3, 4), torch.randn(5, 4)
    if leaf is not None:
        inputs[leaf].requires_grad_()
    decoder_loss(*inputs, torch.arange(3))
    with torch.no_grad():
        decoder_loss(*inputs, torch.arange(3))
    assert asked == [leaf is not None, False]


def test_tied_weight(backend):
    """The same matrix on both sides, as with a tied embedding: the gradients add up."""
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 6, -100])
    ids = torch.tensor([0, 3, 5])
    ours = gradients(decoder_loss(weight[ids], weight, target), [weight])
    plain = gradients(F.cross_entropy(weight[ids] @ weight.t(), target), [weight])
    torch.testing.assert_close(ours, plain)


def test_gradcheck(backend):
    hidden, weight, target = make(6)
    inputs = leaves(hidden, weight, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: decoder_loss(h, w, target), inputs)


def test_gradients_can_be_taken_twice_from_one_graph(backend):
    hidden, weight, target = make(6)
    inputs = leaves(hidden, weight, dtype=torch.float64)
    loss = decoder_loss(*inputs, target)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss * 3, inputs), tuple(3 * g for g in first))


def test_a_batch_of_gradients(backend):
    hidden, weight, target = make(9)
    hidden.requires_grad_()
    (one,) = torch.autograd.grad(decoder_loss(hidden, weight, target), hidden)
    loss = decoder_loss(hidden, weight, target)
    (batch,) = torch.autograd.grad(
        loss, hidden, torch.tensor([1.0, 2.0]).to(loss.dtype), is_grads_batched=True
    )
    torch.testing.assert_close(batch, torch.stack([one, 2 * one]))


def test_second_derivative_is_refused(backend):
    hidden, weight, target = make(6)
    h, w = leaves(hidden, weight, dtype=torch.float64)
    (dh,) = torch.autograd.grad(decoder_loss(h, w, target), h, create_graph=True)
    with pytest.raises(RuntimeError, match="decoder_loss: second derivatives"):
        dh.sum().backward()


def test_no_more_than_a_chunk_of_logits(backend, monkeypatch):
    """The largest tensor that forward and backward create has the size of a gradient or of one chunk."""
    rows = 16 if backend == "cpp" else 4  # a line of the cache
    chunks_of(monkeypatch, rows)
    n, words, width = 64, 500, 3
    hidden, weight = leaves(torch.randn(n, width), torch.randn(words, width), dtype=torch.float32)
    target = torch.randint(0, words, (n,))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        decoder_loss(hidden, weight, target).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 4 * max(rows * words, words * width)


class TestRegistration:
    @pytest.fixture(autouse=True)
    def plain_memory(self, nan_memory):
        torch.use_deterministic_algorithms(False)

    @pytest.mark.parametrize("grads", [True, False])
    def test_opcheck(self, backend, grads):
        hidden, weight, target = make(6)
        inputs = [x.float() for x in (hidden, weight)]
        inputs = leaves(*inputs, dtype=torch.float32) if grads else inputs
        torch.library.opcheck(_forward.overload, (*inputs, target, -100, grads))

    def test_compiles_as_one_graph(self, backend):
        hidden, weight, target = make(6)

        def step(h, w):
            return decoder_loss(h * 1, w, target) * 2

        inputs = leaves(hidden, weight, dtype=torch.float32)
        eager = step(*inputs)
        out = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(out, eager)
        torch.testing.assert_close(gradients(out, inputs), gradients(eager, inputs))


def test_under_autocast_dtypes_may_differ():
    """As for torch's linear map: what comes from a projection is bfloat16 there, the parameter float32."""
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4, requires_grad=True)
    target = torch.arange(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = decoder_loss(hidden.bfloat16(), weight, target)
    loss.backward()
    assert torch.equal(loss, decoder_loss(hidden.bfloat16(), weight.bfloat16(), target))
    assert weight.grad.dtype == torch.float32
    with pytest.raises(ValueError, match=r"weight must be torch\.bfloat16"):
        decoder_loss(hidden.bfloat16(), weight, target)
