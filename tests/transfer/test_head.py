import pytest
import torch
from glomo_kernels import SparseGraph

from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.readers.choice import ChoiceReader
from glomo_dist.transfer.readers.esim import PairReader
from glomo_dist.transfer.readers.head import Fusion, GraphMixture, window_mix
from glomo_dist.transfer.readers.models import PixelReader, ReaderSizes, TaskModel, TextReader, planes
from glomo_dist.transfer.readers.sequences import Sequences
from glomo_dist.transfer.readers.spans import SpanReader


def sparse(dense):
    """SparseGraph of a dense [B, C, T, T]."""
    T = dense.shape[-1]
    flat = dense.reshape(-1, T)
    row, column = flat.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (flat > 0).sum(-1).cumsum(0)])
    return SparseGraph(offsets, column.int(), flat[row, column], tuple(dense.shape[:3]))


def random_graphs(B, C, T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = []
    for side in (torch.ones(T, T).tril(-1), torch.ones(T, T).triu(1)):
        dense = torch.rand(B, C, T, T, generator=generator).sub(0.5).relu() * side
        both.append(dense / dense.sum(-1, keepdim=True).clamp(min=1e-9))
    return both


@pytest.mark.parametrize("size", [None, 1, 2, 5, 6, 100])
@pytest.mark.parametrize("lengths", [[6, 3, 1], [6, 6, 6]])
def test_window_mix_is_the_dense_graph_of_the_nearest_units(lengths, size):
    """None: of all units, the uniform graph."""
    T, lengths = 6, torch.tensor(lengths)
    features = torch.randn(3, T, 4)
    real = torch.arange(T) < lengths[:, None]
    both = real[:, :, None] & real[:, None, :]
    near = torch.ones(T, T).tril(size or T).triu(-(size or T))
    sides = (torch.ones(T, T).tril(-1), torch.ones(T, T).triu(1))
    for got, side in zip(window_mix(features, lengths, size), sides, strict=True):
        graph = both * side * near
        graph = graph / graph.sum(-1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(got, graph @ features, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [None, 1, 3])
def test_means_of_long_texts_are_as_exact_as_those_of_short_ones(size):
    """And know nothing of what is outside of the window, however large."""
    features = torch.rand(1, 1024, 5, requires_grad=True)
    lengths = torch.tensor([1000])
    exact = window_mix(features.double(), lengths, size)
    for got, wanted in zip(window_mix(features, lengths, size), exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), wanted, atol=1e-7, rtol=1e-6)
    if size is not None:
        loud = features.detach().clone()
        loud[0, 0] += 1e4
        for got, before in zip(
            window_mix(loud, lengths, size), window_mix(features, lengths, size), strict=True
        ):
            torch.testing.assert_close(got[0, 5:], before[0, 5:], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("conditioned", [False, True])
def test_mixture_is_the_written_sum(conditioned):
    """Two layers of two heads: M = Σ softmax(logits)_c P_c with P = G0, G1, Λ1, per direction and mixture."""
    B, T, D, heads = 2, 5, 3, 2
    dense = random_graphs(B, 4, T)
    features = torch.randn(B, T, D)
    mixture = GraphMixture(D, layers=2, heads=heads, mixtures=2, conditioned=conditioned)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter)
    expected = []
    for x in range(2):
        G = dense[x].view(B, 2, heads, T, T)
        P = torch.cat([G[:, 0], G[:, 1], G[:, 1] @ G[:, 0]], 1)  # [B, C', T, T]
        for m in range(2):
            logits = mixture.logits[x, m].expand(B, T, -1)
            if conditioned:
                logits = logits + features @ mixture.condition[x, m].T
            M = torch.einsum("btc,bcts->bts", logits.softmax(-1), P)
            expected.append(mixture.scale[x, m] * (M @ features))
    got = mixture(features, tuple(sparse(d) for d in dense))
    torch.testing.assert_close(got, torch.cat(expected, -1), atol=1e-5, rtol=1e-4)
    got.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixture.parameters())


def test_mixture_starts_as_the_mean_and_draws_nothing():
    state = torch.get_rng_state()
    mixture = GraphMixture(3, layers=2, heads=4, mixtures=3, conditioned=True)
    assert torch.equal(torch.get_rng_state(), state)
    weights = mixture.weights(torch.randn(2, 5, 3))
    torch.testing.assert_close(weights, torch.full((2, 3, 2, 5, 12), 1 / 12))


def test_gate_is_linear_times_sigmoid_of_linear():
    fusion = Fusion("gate", width=3, mixed=4)
    features, mixed = torch.randn(2, 5, 3), torch.randn(2, 5, 12)
    out = fusion(features, mixed)
    both = torch.cat([features, mixed], -1)
    W, b = fusion.linear.weight, fusion.linear.bias
    gate = (both @ W[:3].T + b[:3]) * torch.sigmoid(both @ W[3:].T + b[3:])
    assert out.shape[-1] == fusion.out == 6
    torch.testing.assert_close(out, torch.cat([features, gate], -1))


def test_concat_is_concatenation():
    fusion = Fusion("concat", width=3, mixed=2)
    features, mixed = torch.randn(2, 5, 3), torch.randn(2, 5, 6)
    assert torch.equal(fusion(features, mixed), torch.cat([features, mixed], -1))
    assert fusion.out == 9


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"mixtures": 0}, "mixture: mixtures must be a whole number from 1 to .*, got 0"),
        ({"layers": 0}, "mixture: layers"),
        ({"heads": 1.5}, r"mixture: heads must be .*, got 1\.5"),
        ({"width": "3"}, "mixture: width"),
    ],
)
def test_sizes_of_no_mixture(sizes, named):
    with pytest.raises(ConfigError, match=named):
        GraphMixture(**{"width": 3, "layers": 2, "heads": 2, **sizes})


def test_a_mixture_takes_the_pair_of_graphs():
    """A SparseGraph is a tuple, and was taken for the pair."""
    forward, backward = (sparse(dense) for dense in random_graphs(1, 2, 4))
    mixture, features = GraphMixture(3, layers=1, heads=2), torch.randn(1, 4, 3)
    assert mixture(features, [forward, backward]).shape == (1, 4, 6)
    for graphs in (forward, (forward,), (forward, backward, backward), (forward, None), None):
        with pytest.raises(ValueError, match="graphs must be a pair of SparseGraph, forward and backward"):
            mixture(features, graphs)


@pytest.mark.parametrize("kind", ["concat", "gate"])
def test_fusion_takes_the_widths_it_was_made_for(kind):
    fusion = Fusion(kind, width=3, mixed=2)
    for widths in ((3, 12), (4, 5), (6, 3)):
        features, mixed = (torch.randn(2, 5, width) for width in widths)
        named = f"must be 3 and 6 wide .*, got {widths[0]} and {widths[1]}"
        with pytest.raises(ValueError, match=named):
            fusion(features, mixed)
    with pytest.raises(ConfigError, match="fusion: width must be a whole number from 1"):
        Fusion(kind, width=0, mixed=2)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_reader_ignores_padding_and_reads_both_ways(kind):
    torch.manual_seed(0)
    reader = TextReader(ReaderSizes(3, 4, 2, 0.0, kind)).eval()
    units = torch.randn(2, 6, 3)
    lengths = torch.tensor([6, 4])
    together = reader(Sequences(units, lengths))
    alone = [Sequences(units[:1], lengths[:1]), Sequences(units[1:, :4], lengths[1:])]
    alone = torch.cat([reader(text) for text in alone])
    torch.testing.assert_close(together, alone)
    # the same numbers as torch's own bidirectional network on packed sequences
    both = getattr(torch.nn, kind.upper())(3, 4, batch_first=True, bidirectional=True)
    both.load_state_dict(
        {
            **reader.states.forwards.state_dict(),
            **{f"{n}_reverse": v for n, v in reader.states.backwards.state_dict().items()},
        }
    )
    packed = torch.nn.utils.rnn.pack_padded_sequence(units, lengths, batch_first=True)
    states = torch.nn.utils.rnn.pad_packed_sequence(both(packed)[0], batch_first=True)[0]
    score = reader.pool.score(torch.tanh(reader.pool.attend(states))).squeeze(-1)
    share = score.masked_fill(torch.arange(6) >= lengths[:, None], float("-inf")).softmax(1)
    torch.testing.assert_close(together, reader.classify((share[..., None] * states).sum(1)))


def test_bag_reader_is_blind_to_order_but_for_the_graph():
    torch.manual_seed(2)
    sizes = ReaderSizes(6, 4, 2, 0.0, "bag")
    reader = TextReader(sizes).eval()
    units, lengths = torch.randn(2, 5, 6), torch.tensor([5, 3])
    linear = reader.states.linear
    expected = (units @ linear.weight.T + linear.bias).clamp(min=0).transpose(0, 1)
    torch.testing.assert_close(reader.states(Sequences(units, lengths)), expected)
    order = torch.tensor([[4, 2, 0, 1, 3], [2, 0, 1, 3, 4]])  # the padding of the second text stays behind
    shuffled = units.gather(1, order[..., None].expand_as(units))
    torch.testing.assert_close(
        reader(Sequences(units, lengths)), reader(Sequences(shuffled, lengths)), rtol=1e-5, atol=1e-6
    )
    # the same reader behind the uniform graph sees what comes before and after each word
    model = TaskModel("window", GraphMixture(2, 1, 1), Fusion("concat", 2, 2), reader, 0.0).eval()
    plain = units[..., :2]
    moved = plain.gather(1, order[..., None].expand_as(plain))
    apart = model({"text": Sequences(plain, lengths)}) - model({"text": Sequences(moved, lengths)})
    assert apart.abs().max() > 1e-3


def test_reader_gradients():
    """The permutations inside have a written gradient; compare with finite differences, padding included."""
    torch.manual_seed(1)
    reader = TextReader(ReaderSizes(2, 3, 2, 0.0)).double().eval()
    lengths = torch.tensor([4, 2, 1])
    units = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reader(Sequences(x, lengths)), units)


@pytest.mark.parametrize(("reader", "column"), [(TextReader, "text"), (PixelReader, "image")])
def test_dropout_before_the_reader_and_before_its_classifier(reader, column):
    torch.manual_seed(0)
    sizes = ReaderSizes(12, 32, 2, 0.5, shape=(4, 5))
    model = TaskModel("window", GraphMixture(4, 1, 1), Fusion("concat", 4, 2), reader(sizes), 0.5)
    zeros = []
    model.reader.register_forward_pre_hook(
        lambda _, args, given: zeros.append(float((given[column].units == 0).float().mean())),
        with_kwargs=True,
    )
    model.reader.classify.register_forward_pre_hook(
        lambda _, given: zeros.append(float((given[0] == 0).float().mean()))
    )
    sequences = Sequences(1 + torch.rand(8, 20, 4), torch.full((8,), 20))
    for training in (True, False):
        model.train(training)({column: sequences})
    for dropped, without in zip(zeros[:2], zeros[2:], strict=True):
        assert 0.4 < (dropped - without) / (1 - without) < 0.6


def test_planes_of_images_that_are_no_squares():
    image = torch.arange(24.0).view(1, 3, 4, 2)  # height, width, channels
    found = planes(Sequences(image.flatten(1, 2), torch.tensor([12])), (3, 4))
    assert torch.equal(found, image.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("reader", "texts", "dropped"),
    [
        (PairReader, 2, {"compose", "decide", "classify"}),
        (SpanReader, 2, {"flow", "again", "own", "first", "last", "score.0", "score.1"}),
        (ChoiceReader, 3, {"query", "agree"}),
    ],
)
def test_dropout_within_the_readers_of_several_texts(reader, texts, dropped):
    """Half of what these layers are given is zero, beyond what is so without dropout."""
    torch.manual_seed(0)
    model, zeros = reader(ReaderSizes(4, 32, 2, 0.5)), {}

    def note(name, given):
        units = given.units if isinstance(given, Sequences) else given
        zeros.setdefault(name, []).append(float((units == 0).float().mean()))

    for name, module in model.named_modules():
        if name in dropped:
            module.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0]))
    given = [Sequences(torch.rand(8, 10, 4), torch.full((8,), 10)) for _ in range(texts)]
    for training in (False, True):
        model.train(training)(*given)
    for name in dropped:
        found = zeros[name]
        for without, there in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
            assert 0.4 < (there - without) / (1 - without) < 0.6, name
