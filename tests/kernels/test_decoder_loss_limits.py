"""decoder_loss at the limits of numbers: denormal, infinite and NaN logits, targets that are no words."""

import pytest
import torch
import torch.nn.functional as F
from glomo_kernels import decoder_loss
from glomo_kernels.decoder_loss import _forward, reference
from kernel_oracle import gradients, leaves
from test_decoder_loss import OP

__all__ = ["OP"]  # for conftest.py: see there
pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_likelihoods_down_to_the_smallest_normal_number(backend, dtype):
    """With one row of one 1, the gradient of the weight is softmax itself: up to rounded logits, some units of its
    last place."""
    least = -104 if dtype == torch.float32 else -746
    weight = torch.linspace(least, 0, 5000, dtype=torch.float64).to(dtype)[:, None].requires_grad_()
    loss = decoder_loss(weight.new_ones(1, 1), weight, torch.tensor([0]), reduction="sum")
    (slope,) = torch.autograd.grad(loss, [weight])
    exact = weight.detach().double().softmax(0)
    info = torch.finfo(dtype)
    error = (slope.double() - exact)[1:].abs()
    bound = (8 + weight.detach()[1:].double().abs() / 2) * info.eps * exact[1:]
    assert (error <= bound + info.smallest_normal).all()
    assert slope[0] == -1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_half_precision(backend, dtype):
    """As logits, one at a time beside 0: also the denormal ones, infinity and NaN."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    value = every[every.isfinite() & (every.abs() < 100)].double()
    weight = torch.stack([value, torch.zeros_like(value)], 1).to(dtype)
    hidden = torch.eye(2, dtype=dtype).requires_grad_()
    loss = decoder_loss(hidden, weight, torch.tensor([0, 0]), reduction="sum")
    (slope,) = torch.autograd.grad(loss, hidden)
    exact = (value.softmax(0) * value).sum() - value[0]
    torch.testing.assert_close(slope[0, 0].double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)
    for wrong in every[~every.isfinite()][::37]:
        column = torch.stack([wrong, torch.zeros((), dtype=dtype)])[:, None]
        expected = F.cross_entropy(column.t().float(), torch.tensor([1]), reduction="sum")
        got = decoder_loss(torch.ones(1, 1, dtype=dtype), column, torch.tensor([1]), reduction="sum")
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("where", ["first", "last", "block", "target", "all"])
def test_words_that_cannot_be(backend, monkeypatch, where):
    """Logits of -inf, in part or all of a block of words: of a mask, or because a product overflows."""
    monkeypatch.setattr(reference, "BLOCK_WORDS", 256)
    words = {"first": slice(1), "last": slice(512, None), "block": slice(256, 512), "target": slice(300, 301)}
    hidden, weight = torch.rand(3, 2) + 0.5, torch.randn(513, 2)
    weight[words.get(where, slice(None)), 0] = -1e38
    inputs = leaves(hidden * torch.tensor([100, 1]), weight, dtype=torch.float32)
    target = torch.tensor([300, -100, 300])
    loss, plain = decoder_loss(*inputs, target), F.cross_entropy(F.linear(*inputs), target)
    torch.testing.assert_close(loss, plain, equal_nan=True)
    results = [torch.autograd.grad(x, inputs) for x in (loss, plain)]
    torch.testing.assert_close(*results, equal_nan=True)


def test_half_precision_where_denormal_numbers_are_taken_for_zero(backend):
    weight = torch.full((4, 64), 3e-5, dtype=torch.float16)
    weight[1:] *= -1
    hidden = torch.full((2, 64), 100.0, dtype=torch.float16)
    expected = decoder_loss(hidden, weight, torch.tensor([0, 1]))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        torch.testing.assert_close(decoder_loss(hidden, weight, torch.tensor([0, 1])), expected)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("target", [600, -1, -(2**63)])
def test_a_wrong_target_that_nobody_could_look_at(backend, target, grads):
    """In a compiled graph targets are not read: the loss is NaN, and not what memory holds."""
    hidden, weight = torch.randn(40, 8), torch.randn(600, 8)
    targets = torch.zeros(40, dtype=torch.int64)
    targets[3] = target
    assert _forward(hidden, weight, targets, -100, grads)[0].isnan()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_wrong_numbers_are_not_hidden(backend, value):
    """A row with a logit that is NaN or infinite has a loss of NaN, as in PyTorch; others keep their gradients."""
    hidden, weight = torch.randn(40, 8), torch.randn(600, 8)
    hidden[3, 2] = value
    inputs = leaves(hidden, weight, dtype=torch.float32)
    target = torch.randint(0, 600, (40,))
    loss = decoder_loss(*inputs, target)
    dhidden, _ = gradients(loss, inputs)
    assert loss.isnan() and dhidden[3].isnan().all()
    assert dhidden[:3].isfinite().all() and dhidden[4:].isfinite().all()
