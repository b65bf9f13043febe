import itertools

import pytest
import torch
import torch.nn.functional as F
from glomo_kernels import decoder_loss
from glomo_kernels.decoder_loss import _forward, cpp, reference
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


def compare(results):
    for name, got, exact, naive in zip(("loss", "dhidden", "dweight"), *results, strict=True):
        assert_no_worse(name, got, exact, naive)


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
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            loss = decoder_loss(*inputs, target)
            results.append([loss, *gradients(loss, inputs)])
        finally:
            torch.set_num_threads(before)
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


def test_other_ignore_index(backend):
    hidden, weight, target = make(9)
    target = target.clamp(min=0)
    results = both(hidden, weight, target, torch.float64, ignore_index=0, reduction="sum")
    torch.testing.assert_close(results[0], results[1])


def test_huge_logits(backend):
    hidden, weight, target = make(9)
    results = both(hidden * 1e3, weight, target, torch.float32, reduction="sum")
    for name, got, exact, naive in zip(("loss", "dhidden", "dweight"), *results, strict=True):
        assert torch.isfinite(got).all()
        assert_no_worse(name, got, exact, naive)


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
    results = both(hidden, weight, target, torch.float16, reduction=reduction, scale=scale)
    for name, got, exact, naive in zip(("loss", "dhidden", "dweight"), *results, strict=True):
        assert_no_worse(name, got, exact, naive, terms=0)


def test_all_targets_ignored_and_none_at_all(backend):
    for n, reduction in itertools.product((3, 0), ("sum", "mean")):
        hidden, weight = leaves(torch.randn(n, 4), torch.randn(5, 4), dtype=torch.float32)
        loss = decoder_loss(hidden, weight, torch.full((n,), -100), reduction=reduction)
        assert loss.isnan() if reduction == "mean" else loss == 0
        assert all((gradient == 0).all() for gradient in gradients(loss, [hidden, weight]))


def test_one_leaf_only(backend):
    hidden, weight, target = make(9)
    expected = both(hidden, weight, target, torch.float64)[1]
    w = weight.requires_grad_()
    torch.testing.assert_close(gradients(decoder_loss(hidden, w, target), [w])[0], expected[2])


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


@pytest.mark.parametrize(
    "change,message",
    [
        ({"reduction": "none"}, "reduction must be 'sum' or 'mean', got 'none'"),
        ({"hidden": torch.zeros(2, 3, 4)}, r"hidden must be \[N, d\]"),
        ({"weight": torch.zeros(5, 3)}, r"weight must be \(V, 4\).* got \(5, 3\)"),
        ({"weight": torch.zeros(5, 4).double()}, "weight must be torch.float32"),
        ({"target": torch.tensor([1, 2])}, r"target must be \(3,\), got \(2,\)"),
        ({"target": torch.tensor([1.0, 2, 3])}, "target must be an int64 tensor"),
        *(
            ({"ignore_index": wrong}, f"ignore_index must be a whole number of 64 bits, got {wrong!r}")
            for wrong in (None, 1.5, "1", 2**64)
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
    from glomo_kernels.decoder_loss import reference

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
