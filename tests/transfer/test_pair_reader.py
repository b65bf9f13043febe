"""The reader of pairs: its alignment is that of the paper, padding changes nothing."""

import pytest
import torch

from glomo_dist.transfer.readers.esim import PairReader, align
from glomo_dist.transfer.readers.models import ReaderSizes
from glomo_dist.transfer.readers.sequences import Sequences


def test_alignment_is_that_of_the_paper():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    n = [(4, 5), (2, 3)]
    real_a, real_b = (
        torch.arange(t.shape[1]) < torch.tensor([m[x] for m in n])[:, None] for x, t in ((0, a), (1, b))
    )
    to_a, to_b = align(a @ b.transpose(1, 2), a, b, real_a, real_b)
    for s, (p, h) in enumerate(n):
        for i in range(p):
            weight = torch.exp(torch.stack([a[s, i] @ b[s, j] for j in range(h)]))
            torch.testing.assert_close(to_a[s, i], (weight[:, None] * b[s, :h]).sum(0) / weight.sum())
        for j in range(h):
            weight = torch.exp(torch.stack([a[s, i] @ b[s, j] for i in range(p)]))
            torch.testing.assert_close(to_b[s, j], (weight[:, None] * a[s, :p]).sum(0) / weight.sum())


def test_reader_is_the_written_formula():
    torch.manual_seed(0)
    reader = PairReader(ReaderSizes(3, 4, 3, 0.5)).eval()

    def states(layer, units):  # [T, width] -> [T, 2 · hidden]
        return layer(Sequences(units[None], torch.tensor([len(units)])))[:, 0]

    def pooled(own, other):
        compared = reader.compare(torch.cat([own, other, own - other, own * other], -1)).relu()
        composed = states(reader.compose, compared)
        return torch.cat([composed.mean(0), composed.amax(0)])

    premise, hypothesis = torch.randn(4, 3), torch.randn(2, 3)
    a, b = states(reader.encode, premise), states(reader.encode, hypothesis)
    scores = a @ b.T
    both = torch.cat([pooled(a, scores.softmax(1) @ b), pooled(b, scores.softmax(0).T @ a)])
    given = (Sequences(x[None], torch.tensor([len(x)])) for x in (premise, hypothesis))
    torch.testing.assert_close(reader(*given)[0], reader.classify(reader.decide(both).tanh()))


@pytest.mark.parametrize("cell", ["gru", "lstm", "bag"])
def test_reader_ignores_padding(cell):
    torch.manual_seed(0)
    reader = PairReader(ReaderSizes(3, 4, 3, 0.5, cell)).eval()
    p, h = torch.randn(2, 6, 3), torch.randn(2, 5, 3)
    lengths = torch.tensor([6, 2]), torch.tensor([1, 5])
    together = reader(Sequences(p, lengths[0]), Sequences(h, lengths[1]))
    for i in range(2):
        alone = [Sequences(x[i : i + 1, : n[i]], n[i : i + 1]) for x, n in ((p, lengths[0]), (h, lengths[1]))]
        torch.testing.assert_close(reader(*alone)[0], together[i])
        turned = reader(*alone[::-1])
        assert not torch.allclose(turned[0], together[i], atol=1e-4), (
            "premise and hypothesis are not the same"
        )


def test_a_bag_aligns_words_by_themselves_and_compares_them_in_context():
    torch.manual_seed(0)
    reader = PairReader(ReaderSizes(5, 4, 3, 0.0, "bag", own=2)).eval()
    lengths = torch.tensor([4, 3])
    p, h = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    aligned = []
    reader.attend.register_forward_hook(lambda module, args, out: aligned.append(out))
    outputs = []
    for context in (0.0, 1.0):  # what the graphs bring stands behind the words' own two features
        moved = [torch.cat([x[..., :2], x[..., 2:] + context], -1) for x in (p, h)]
        outputs.append(reader(*(Sequences(x, lengths) for x in moved)))
    assert torch.equal(aligned[0], aligned[2]) and torch.equal(aligned[1], aligned[3])
    assert not torch.allclose(*outputs, atol=1e-3)
