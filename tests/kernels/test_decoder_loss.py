import itertools

import pytest
import torch
import torch.nn.functional as F
from glomo_kernels import decoder_loss
from glomo_kernels.decoder_loss import cpp, reference
from kernel_oracle import assert_no_worse, gradients, leaves

OP = "decoder_loss"
pytestmark = pytest.mark.usefixtures("nan_memory")


def make(n, words=23, width=6):
    hidden = torch.randn(n, width, dtype=torch.float64)
    weight = torch.randn(words, width, dtype=torch.float64)
    target = torch.randint(0, words, (n,))
    target[::5] = -100
    return hidden, weight, target


def chunks_of(monkeypatch, rows):
    monkeypatch.setattr(cpp, "CHUNK_ROWS", rows)
    monkeypatch.setattr(reference, "CHUNK_ROWS", rows)
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", rows)


def both(hidden, weight, target, dtype, scale=1, **options):
    """Ours, plain PyTorch in float64 and in `dtype` (logits of that type, their cross-entropy in float32)."""
    results = []
    for ours, used in ((True, dtype), (False, torch.float64), (False, dtype)):
        h, w = leaves(*leaves(hidden, weight, dtype=dtype), dtype=used)
        if ours:
            out = decoder_loss(h, w, target, **options)
        else:
            logits = h @ w.t()
            out = F.cross_entropy(logits if used == torch.float64 else logits.float(), target, **options)
        out = out * scale
        results.append([out, *gradients(out, [h, w])])
    return results


def compare(results, **options):
    for name, got, exact, naive in zip(("loss", "dhidden", "dweight"), *results, strict=True):
        assert_no_worse(name, got, exact, naive, **options)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n,rows", [(2, 128), (130, 128), (37, 1), (37, 5)])
def test_agrees_with_cross_entropy(backend, monkeypatch, n, rows, dtype, reduction):
    chunks_of(monkeypatch, rows)
    results = both(*make(n), dtype, reduction=reduction)
    assert results[0][0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    compare(results)


# On both sides of what the loops compute at once: registers, lines of the cache, blocks and shares of words, chunks.
@pytest.mark.parametrize(
    "n,words,width", [(1, 255, 1), (15, 256, 15), (16, 257, 16), (17, 600, 33), (70, 70, 70), (33, 9000, 5)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sizes(backend, monkeypatch, n, words, width, dtype):
    chunks_of(monkeypatch, 48)
    results = both(*make(n + 1, words, width), dtype, reduction="sum")
    compare(results)


def test_the_number_of_threads_does_not_matter(backend, monkeypatch):
    chunks_of(monkeypatch, 48)
    inputs = leaves(*make(100, 2000, 20)[:2], dtype=torch.float32)
    target = torch.randint(0, 2000, (100,))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        loss = decoder_loss(*inputs, target)
        results.append([loss, *gradients(loss, inputs)])
    if backend == "cpp":  # PyTorch's products cut their sums by the number of threads
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
    torch.testing.assert_close(results[1:], [results[0]] * 2)


def test_any_layout(backend):
    hidden, weight, target = make(9)
    plain = leaves(hidden, weight, dtype=torch.float64)
    expected = gradients(decoder_loss(*plain, target), plain)
    across = [x.t().contiguous().t() for x in (hidden, weight)]
    wide = [torch.stack([x, x], -1)[..., 0] for x in (hidden, weight)]
    for inputs in (across, wide):
        inputs = leaves(*inputs, dtype=torch.float64)
        targets = torch.stack([target, target], -1)[:, 0]
        torch.testing.assert_close(gradients(decoder_loss(*inputs, targets), inputs), expected)


def test_what_lies_between_rows_is_not_read(backend):
    hidden, weight, target = make(65, 257, 65)
    plain = leaves(hidden, weight, dtype=torch.bfloat16)
    apart = [torch.full((len(x), 68), torch.nan, dtype=x.dtype)[:, :65].copy_(x.detach()) for x in plain]
    results = []
    for inputs in (plain, [x.requires_grad_() for x in apart]):
        loss = decoder_loss(*inputs, target)
        results.append([loss, *gradients(loss, inputs)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_other_ignore_index(backend, reduction):
    hidden, weight, target = make(9)
    target = target.clamp(min=0)
    results = both(hidden, weight, target, torch.float64, ignore_index=0, reduction=reduction)
    torch.testing.assert_close(results[0], results[1])


def test_huge_logits(backend):
    hidden, weight, target = make(9)
    results = both(hidden * 1e3, weight, target, torch.float32, reduction="sum")
    assert all(torch.isfinite(got).all() for got in results[0])
    compare(results)


@pytest.mark.parametrize("gain", [1, 1.5, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_whose_target_is_nearly_certain(backend, monkeypatch, dtype, gain):
    """p - 1 and the loss are far smaller here than what they are the difference of; the blocks cut V unevenly."""
    chunks_of(monkeypatch, 100)
    monkeypatch.setattr(reference, "BLOCK_WORDS", 300)
    weight = torch.randn(1000, 128)
    target = torch.randint(0, 1000, (256,))
    hidden = gain * weight[target] / 128**0.5 + 0.1 * torch.randn(256, 128)
    target[::5] = -100
    results = both(hidden, weight, target, dtype)
    for name, got, exact, naive in zip(("dhidden", "dweight"), *(x[1:] for x in results), strict=True):
        assert_no_worse(name, got, exact, naive, terms=0)
    # the loss row by row: in the sum over the rows, rounding errors cancel by luck
    rows = [both(hidden[[n]], weight, target[[n]], dtype, reduction="sum") for n in range(40)]
    losses = [torch.stack([result[0] for result in way]) for way in zip(*rows, strict=True)]
    assert_no_worse("losses", *losses, terms=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_loss_of_one_row_is_negative(backend, dtype):
    """Logits of about 400, 300 above all others: the loss is exactly 0."""
    weight = torch.randn(50, 128).to(dtype)
    for word in range(50):
        assert decoder_loss(3 * weight[word : word + 1], weight, torch.tensor([word])).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_word_is_certain(backend, dtype):
    hidden, weight = leaves(*make(9, words=1)[:2], dtype=dtype)
    loss = decoder_loss(hidden, weight, torch.tensor([0, -100, 0, 0, 0, 0, 0, 0, 0]))
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, [hidden, weight]))


@pytest.mark.parametrize("reduction,scale", [("mean", 1), ("sum", 1 / 20_000), ("mean", 2.0**14)])
def test_float16_mean_of_many_targets(backend, reduction, scale):
    """A sum's gradient can be too large for float16, a mean's before the scale of the loss too small."""
    hidden = torch.randn(20_000, 4) / 64
    if scale <= 1:
        hidden += 8
    weight = torch.randn(3, 4) / 64
    target = torch.zeros(20_000, dtype=torch.int64)
    compare(both(hidden, weight, target, torch.float16, reduction=reduction, scale=scale), terms=0)


def test_all_targets_ignored_and_none_at_all(backend):
    for n, reduction in itertools.product((3, 0), ("sum", "mean")):
        hidden, weight = leaves(torch.randn(n, 4), torch.randn(5, 4), dtype=torch.float32)
        loss = decoder_loss(hidden, weight, torch.full((n,), -100), reduction=reduction)
        assert loss.isnan() if reduction == "mean" else loss == 0
        assert all((gradient == 0).all() for gradient in gradients(loss, [hidden, weight]))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"reduction": "none"}, "reduction must be 'sum' or 'mean', got 'none'"),
        ({"hidden": torch.zeros(2, 3, 4)}, r"hidden must be \[N, d\]"),
        (
            {"hidden": torch.zeros(3, 4).long()},
            r"hidden must be \[N, d\] floating .* got \(3, 4\) torch.int64",
        ),
        ({"hidden": [[0.0]]}, "hidden must be a tensor, got list"),
        ({"weight": torch.zeros(0, 4)}, r"weight must be \(V, 4\) with V >= 1 .* got \(0, 4\)"),
        ({"weight": torch.zeros(5, 4, 1)}, r"weight must be \(V, 4\).* got \(5, 4, 1\)"),
        ({"weight": torch.zeros(5, 3)}, r"weight must be \(V, 4\).* got \(5, 3\)"),
        ({"weight": torch.zeros(5, 4).double()}, "weight must be torch.float32"),
        ({"target": torch.tensor([1, 2])}, r"target must be \(3,\), got \(2,\)"),
        ({"target": torch.tensor([1.0, 2, 3])}, "target must be an int64 tensor"),
        *(
            ({"ignore_index": wrong}, f"ignore_index must be a whole number of 64 bits, got {wrong!r}")
            for wrong in (None, 1.5, "1", 2**64, -(2**63) - 1)
        ),
        ({"target": torch.tensor([0, 4, 5])}, "target must lie in 0..4 .* got 5 at position 2"),
        ({"target": torch.tensor([0, -1, 5])}, "target must lie in 0..4 .* got -1 at position 1"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(5, 4), "target": torch.tensor([0, 4, -100])}
    decoder_loss(**good)
    with pytest.raises(ValueError, match="decoder_loss: " + message):
        decoder_loss(**{**good, **change})


@pytest.mark.parametrize("rows,block", [(1, 1), (2, 5), (100, 7), (3, 100)])
def test_chunks_and_blocks_do_not_matter(monkeypatch, rows, block):
    """Also where the largest logits of two blocks are so far apart that one block's share underflows."""
    monkeypatch.setenv("GLOMO_KERNELS", "reference")
    hidden, weight = torch.randn(6, 4, dtype=torch.float64), torch.randn(13, 4, dtype=torch.float64)
    weight[:5] *= 300
    target = torch.tensor([0, 12, -100, 7, 4, 5])
    results = []
    for sizes in ((6, 13), (rows, block)):
        monkeypatch.setattr(reference, "_sizes", lambda *x, sizes=sizes: sizes)
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = decoder_loss(*inputs, target, reduction="sum")
        results.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = torch.nn.functional.cross_entropy(inputs[0] @ inputs[1].t(), target, reduction="sum")
    results.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-11, atol=1e-11)
