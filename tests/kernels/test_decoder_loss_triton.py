"""decoder_loss on Triton: in the interpreter on a CPU, in a process of its own, and on a GPU, the same tests."""

import pytest
import test_decoder_loss as plain
import torch
import torch.nn.functional as F
from glomo_kernels import decoder_loss
from glomo_kernels.decoder_loss import reference, triton_impl
from kernel_oracle import gradients, leaves
from triton_here import DEVICE, anywhere, assert_the_same_in_a_cuda_graph, kernels, run_interpreted

pytest.importorskip("triton", reason="Triton is only made for Linux")
pytestmark = pytest.mark.usefixtures("nan_memory")
HALVES = [torch.bfloat16, torch.float16]


def on_device(*tensors, **options):
    return decoder_loss(*(x.to(DEVICE) for x in tensors), **options).cpu()


@anywhere
def test_in_the_interpreter():
    run_interpreted(__file__)


@kernels
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("n,rows", [(2, 128), (37, 1), (37, 5)])
def test_agrees_with_cross_entropy(monkeypatch, n, rows, dtype, reduction):
    monkeypatch.setattr(triton_impl, "CHUNK_BYTES", rows * 23 * dtype.itemsize)
    hidden, weight, target = plain.make(n)
    results = plain.both(hidden, weight, target, dtype, reduction=reduction)
    plain.compare(results, terms=0 if dtype == torch.float16 else 1)


@kernels
@pytest.mark.parametrize("words", [1, 100, 8192, 8193, 20_000])
def test_any_number_of_words(words):
    hidden, weight, target = plain.make(7, words=words)
    plain.compare(plain.both(hidden, weight, target.clamp(-100, words - 1), torch.float32))


@kernels
def test_rows_of_logits_begin_at_whole_lines(monkeypatch):
    """Also those of an odd number of words, in each chunk, and what lies behind the words is no number of theirs."""
    seen, softmax = [], triton_impl._softmax

    def look(logits, *others):
        seen.append((logits.shape, logits.data_ptr() % 64, logits.stride(0) * logits.itemsize % 128))
        return softmax(logits, *others)

    monkeypatch.setattr(triton_impl, "_softmax", look)
    monkeypatch.setattr(triton_impl, "CHUNK_BYTES", 4 * 128 * 4)
    hidden, weight, target = plain.make(7, words=101)
    plain.compare(plain.both(hidden, weight, target, torch.float32))
    assert seen == [((4, 101), 0, 0), ((3, 101), 0, 0)]


@kernels
@pytest.mark.parametrize("gain", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_rows_whose_target_is_nearly_certain(monkeypatch, dtype, gain):
    plain.test_rows_whose_target_is_nearly_certain(None, monkeypatch, dtype, gain)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_no_loss_of_one_row_is_negative(dtype):
    plain.test_no_loss_of_one_row_is_negative(None, dtype)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_one_word_is_certain(dtype):
    plain.test_one_word_is_certain(None, dtype)


@kernels
def test_float16_sum_of_many_targets():
    """The sum's gradient is too large for float16, and divided afterwards it is not."""
    hidden, weight = torch.randn(1000, 4) / 64 + 160, torch.randn(3, 4) / 640
    results = plain.both(
        hidden, weight, torch.zeros(1000, dtype=torch.int64), torch.float16, scale=1 / 1000, reduction="sum"
    )
    assert (results[1][2] * 1000).abs().max() > 65_504
    plain.compare(results, terms=0)


@kernels
def test_all_targets_ignored_and_huge_logits():
    plain.test_all_targets_ignored_and_none_at_all(None)
    plain.test_huge_logits(None)


@kernels
@pytest.mark.parametrize("target", [3, 8195])
def test_a_block_of_words_that_cannot_be(target):
    """The first block's logits are -inf; the target is among them, or comes after them."""
    hidden, weight = torch.full((2, 2), 100.0), torch.randn(8200, 2)
    weight[:8192, 0] = -1e38
    inputs = leaves(hidden, weight, dtype=torch.float32)
    targets = torch.tensor([target, -100])
    ours, theirs = plain.decoder_loss(*inputs, targets), F.cross_entropy(F.linear(*inputs), targets)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, inputs) for loss in (ours, theirs)))


@kernels
def test_without_gradients_and_with_nan():
    hidden, weight, target = (x.to(DEVICE) for x in plain.make(9))
    hidden, weight = hidden.float(), weight.float()
    inputs = leaves(hidden, weight, dtype=torch.float32)
    assert decoder_loss(hidden, weight, target) == decoder_loss(*inputs, target)
    hidden[3] = torch.nan
    inputs = leaves(hidden, weight, dtype=torch.float32)
    loss = decoder_loss(*inputs, target)
    assert loss.isnan()
    d_hidden, _ = gradients(loss, inputs)
    assert d_hidden[3].isnan().all() and not d_hidden[[0, 1, 2, 4]].isnan().any()


@kernels
@pytest.mark.parametrize("wrong", [-1, 11, 2**40])
def test_a_target_out_of_range_where_none_looks(wrong):
    """NaN; as an index it would end every later use of a GPU. The rows beside it are as they are without it."""
    hidden, weight = torch.randn(3, 4, device=DEVICE), torch.randn(11, 4, device=DEVICE)
    targets = [torch.tensor(ids, device=DEVICE) for ids in ([2, wrong, -100], [2, -100, -100])]
    (loss, dhidden, _), (_, expected, _) = (
        triton_impl.forward(hidden, weight, target, -100, True) for target in targets
    )
    assert loss.isnan() and dhidden[1].isnan().all()
    assert torch.equal(dhidden[[0, 2]], expected[[0, 2]])


@anywhere
def test_what_it_takes():
    x = torch.zeros(2, 3)
    assert "float64 is not implemented" in triton_impl.why_not(x.double())
    assert triton_impl.why_not(x) in ("it takes CUDA tensors, these are on cpu", "triton is not installed")


@anywhere
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_products_have_the_range_of_the_sum(dtype):
    rows = torch.full((3000, 2), 30.0, dtype=dtype)
    product = reference._product(rows.t(), rows, torch.float32)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, torch.full((2, 2), 2.7e6), rtol=1e-2, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
def test_runs_in_a_cuda_graph(deterministic):
    """Forward and backward wait for nothing, also under torch's deterministic algorithms."""
    torch.use_deterministic_algorithms(deterministic)
    hidden, weight = leaves(*(torch.randn(n, 16, device=DEVICE) for n in (50, 9000)), dtype=torch.bfloat16)
    target = torch.randint(0, 9000, (50,), device=DEVICE)

    def step():
        loss = decoder_loss(hidden, weight, target)
        return [loss, *torch.autograd.grad(loss, (hidden, weight))]

    assert_the_same_in_a_cuda_graph(step)
