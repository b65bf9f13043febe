"""decoder_loss with products of bfloat16 by the processor's own instructions, see test_bfloat16.py."""

import pytest
import test_decoder_loss as decoder
import torch
from glomo_kernels import decoder_loss
from kernel_oracle import gradients, leaves
from test_bfloat16 import HALF, at_an_odd_address, needs_instructions

pytestmark = [
    pytest.mark.usefixtures("nan_memory", "backend"),
    pytest.mark.parametrize("backend", ["cpp"], indirect=True),
]


@needs_instructions
@pytest.mark.parametrize(
    "n,words,width",
    [(1, 255, 32), (15, 256, 64), (16, 257, 32), (17, 600, 96), (70, 70, 64), (130, 9000, 32)],
)
def test_decoder_loss(monkeypatch, n, words, width):
    decoder.chunks_of(monkeypatch, 48)
    hidden, weight, target = decoder.make(n + 1, words, width)
    decoder.compare(decoder.both(hidden / width**0.5, weight, target, HALF, reduction="sum"))


@needs_instructions
def test_a_word_of_no_probability_for_its_infinity_spoils_no_other():
    hidden, weight, _ = (x.abs() + 1 for x in decoder.make(5, 300, 32))
    weight[[3, 299]] = -torch.inf
    hidden, weight = leaves(hidden, weight, dtype=HALF)
    target = torch.arange(len(hidden)) + 4
    loss = decoder_loss(hidden, weight, target)
    (dweight,) = torch.autograd.grad(loss, weight)
    logits = hidden.float() @ weight.float().mT
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), weight)
    torch.testing.assert_close(dweight, expected, rtol=0.02, atol=0.02)


@needs_instructions
def test_decoder_loss_on_any_number_of_threads_and_in_any_place(monkeypatch):
    decoder.chunks_of(monkeypatch, 48)
    hidden, weight, target = decoder.make(100, 2000, 32)
    inputs = leaves(hidden, weight, dtype=HALF)
    shifted = [at_an_odd_address(x.detach()).requires_grad_() for x in inputs]
    results = []
    for threads, tensors in ((1, inputs), (2, inputs), (5, shifted)):
        torch.set_num_threads(threads)
        loss = decoder_loss(*tensors, target)
        results.append([loss, *gradients(loss, tensors)])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
