"""What must hold for the graphs of every GLoMo model: rows, edges, neighbours, the backward direction, statistics."""

import pytest
import torch
from glomo_samples import IMAGE, KINDS, VARIANTS, build, tokens

from glomo_dist.model.glomo import reversal, reverse_graph
from glomo_dist.model.graph_predictor import turned
from glomo_dist.model.graph_stats import row_means


@pytest.mark.parametrize("sparsity", KINDS)
def test_graph_rows_are_distributions_over_earlier_units(sparsity: str) -> None:
    model = build(sparsity=sparsity)
    lengths = torch.tensor([9, 4, 1])
    with torch.no_grad():
        forward, backward = (g.dense() for g in model.graphs(tokens(3, 9), lengths))
    assert forward.shape == (3, 8, 9, 9)
    assert (forward.triu() == 0).all()
    assert (backward.tril() == 0).all()
    for graph in (forward, backward):
        sums = graph.sum(-1)
        assert ((sums - 1).abs() < 1e-6).logical_or(sums == 0).all()
        assert (graph >= 0).all()
        assert (graph[1, :, 4:] == 0).all()
        assert (graph[1, :, :, 4:] == 0).all()
        assert (graph[2] == 0).all()
    assert (forward.sum(-1) > 0).any()
    assert (backward.sum(-1) > 0).any()


def test_keep_leaves_the_largest_edges() -> None:
    model = build(sparsity="square")
    lengths = torch.tensor([9])
    with torch.no_grad():
        whole, cut = model.graphs(tokens(1, 9), lengths)[1], model.graphs(tokens(1, 9), lengths, keep=2)[1]
    top = whole.dense().topk(2, dim=-1)
    expected = torch.zeros_like(whole.dense()).scatter(-1, top.indices, top.values)
    expected = expected / expected.sum(-1, keepdim=True).clamp(min=1e-12)
    assert torch.allclose(cut.dense(), expected, atol=1e-7)


def test_of_equal_edges_the_farthest_stay() -> None:
    model = build(sparsity="square", key_layers=0, query_layers=0, layers=1).eval()
    with torch.no_grad():
        graphs = model.graphs(torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5]), keep=1)
    forward, backward = (graph.dense()[0, 0].argmax(1) for graph in graphs)
    assert forward[1:].tolist() == [0] * 4 and backward[:-1].tolist() == [4] * 4


def test_pixels_see_their_neighbours_above() -> None:
    """One convolution: pixel (2, 2) sees (1, 1..3), (2, 1) and itself, no other."""
    model = build(IMAGE, query_layers=1, layers=1)
    predictor = model.forwards.graph_predictor
    x = torch.randn(1, 20, 16, dtype=torch.float64, requires_grad=True)
    predictor(x)[1][0, 2 * 5 + 2].sum().backward()
    seen = x.grad.abs().sum(-1)[0].view(4, 5) > 0
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[1, 1:4] = True
    expected[2, 1:3] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_an_image_of_one_row_is_a_text(norm: str) -> None:
    """Whose units see as many as the kernel has up to its middle, through the same layers."""
    pixels = build(IMAGE, image=(1, 7), kernel_size=5, norm=norm)
    words = build(IMAGE, image=None, kernel_size=3, norm=norm).eval()
    x, lengths = tokens(3, 7), torch.tensor([7, 7, 7])
    pixels(x, lengths, torch.zeros(2, 3, 1, dtype=torch.int64))  # fills running statistics
    state = pixels.eval().state_dict()
    words.load_state_dict({name: p[:, :, -1, :3] if p.ndim == 4 else p for name, p in state.items()})
    with torch.no_grad():
        for image, text in zip(pixels.graphs(x, lengths), words.graphs(x, lengths), strict=True):
            torch.testing.assert_close(image.dense(), text.dense())
            assert 0 < image.weights.numel() < 3 * 4 * 21


def test_pairs_of_features_turn_at_speeds_from_one_down_to_the_longest_turn() -> None:
    """As rotations of the complex plane: pair i of n by position * 1000^(-i / n). Frozen: with another number a model
    that was saved would have other graphs."""
    x = torch.randn(2, 3, 5, 8, dtype=torch.complex128)
    at = torch.tensor([0, 1, 2, 50, 999])
    speed = 1000 ** -(torch.arange(8, dtype=torch.float64) / 8)
    found = turned(torch.cat([x.real, x.imag], -1), at)
    expected = x * torch.polar(torch.ones(5, 8, dtype=torch.float64), at[:, None] * speed)
    torch.testing.assert_close(found, torch.cat([expected.real, expected.imag], -1))
    half = turned(torch.cat([x.real, x.imag], -1).bfloat16(), at)  # which cannot count to 999
    torch.testing.assert_close(half.double(), found, rtol=0.02, atol=0.05)


def test_backward_direction_is_the_forward_one_on_the_reversed_sequence() -> None:
    model = build()
    model.backwards.load_state_dict(model.forwards.state_dict())
    x, lengths = tokens(2, 8), torch.tensor([8, 8])
    with torch.no_grad():
        forward, backward = model.graphs(x, lengths)
        mirrored, _ = model.graphs(x.flip(1), lengths)
    assert torch.equal(backward.dense(), mirrored.dense().flip(-1, -2))
    assert not torch.equal(forward.dense(), mirrored.dense())


def test_reverse_graph_twice_is_the_graph() -> None:
    model = build(sparsity="relu")
    lengths = torch.tensor([9, 5, 1])
    with torch.no_grad():
        graph, _ = model.graphs(tokens(3, 9), lengths)
    once = reverse_graph(graph, lengths)
    assert torch.equal(once.dense()[0], graph.dense()[0].flip(-1, -2))
    twice = reverse_graph(once, lengths)
    for a, b in zip(graph[:3], twice[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)  # of one dtype too
    assert graph.shape == twice.shape


def test_reversal_leaves_padding() -> None:
    assert reversal(torch.tensor([3, 0, 4]), 4).tolist() == [[2, 1, 0, 3], [0, 1, 2, 3], [3, 2, 1, 0]]


@pytest.mark.parametrize("changes", [{}, *VARIANTS], ids=str)
def test_statistics_of_training_are_those_of_the_exported_graph(changes: dict[str, object]) -> None:
    model = build(**changes).train()
    L = model.config.layers
    model.collect_stats = True
    x, lengths = tokens(3, 9), torch.tensor([9, 6, 2])
    positions = torch.stack([torch.arange(9), torch.arange(9)])[:, None].expand(2, 3, 9)
    model(x, lengths, positions)
    with torch.no_grad():
        forward, backward = (g.dense().view(3, L, 4, 9, 9) for g in model.graphs(x, lengths))
    rows = 2 * (8 + 5 + 1)
    edges = (forward > 0).sum((0, 3, 4)) + (backward > 0).sum((0, 3, 4))
    live = (forward.sum(-1) > 0).sum((0, 3)) + (backward.sum(-1) > 0).sum((0, 3))
    edges, live = edges.double(), live.double()
    entropy = sum(-(g * g.clamp(min=1e-300).log()).sum((0, 3, 4)) for g in (forward, backward))
    assert torch.allclose(row_means(model.last_sums)["edges_per_row"].double(), edges / rows, atol=1e-6)
    assert torch.allclose(row_means(model.last_sums)["empty_rows"].double(), 1 - live / rows, atol=1e-6)
    assert torch.allclose(
        row_means(model.last_sums)["entropy"].double(), entropy / live.clamp(min=1), atol=1e-5
    )


def test_statistics_of_the_last_layer_are_those_of_the_sampled_rows() -> None:
    """As often as they are sampled; a first unit has nothing to look at and is no row."""
    model = build().train()
    model.collect_stats = True
    x, lengths = tokens(2, 9), torch.tensor([9, 5])
    positions = torch.tensor([[[1, 8, 3], [0, 4, 4]], [[2, 2, 7], [1, 3, 0]]])
    model(x, lengths, positions)
    own = (positions[0], lengths[:, None] - 1 - positions[1])
    with torch.no_grad():
        edges = [(g.dense() > 0).sum(-1).view(2, 2, 4, 9) for g in model.graphs(x, lengths)]
    first = sum(e[:, 0].sum((0, 2)) for e in edges) / (2 * (8 + 4))
    sampled = sum(
        e[:, 1].gather(2, at[:, None].expand(2, 4, 3)).sum((0, 2)) for e, at in zip(edges, own, strict=True)
    )
    found = row_means(model.last_sums)["edges_per_row"].float()
    torch.testing.assert_close(found, torch.stack([first, sampled / (positions > 0).sum()]))
    # of short texts only the first unit may be sampled, so that the last layer has no rows
    model(x[:, :2], torch.tensor([2, 2]), torch.zeros(2, 2, 3, dtype=torch.int64))
    assert all((mean[-1] == 0).all() for mean in row_means(model.last_sums).values())


@pytest.mark.parametrize("changes", [{"sparsity": kind} for kind in KINDS] + list(VARIANTS))
def test_a_batch_of_empty_texts_has_empty_graphs(changes: dict[str, object]) -> None:
    """As each of them has beside another text; it has no loss."""
    model, lengths = build(**changes), torch.zeros(3, dtype=torch.int64)
    beside = model.graphs(tokens(3, 1), lengths)
    for graph, expected in zip(model.graphs(tokens(3, 0), lengths, keep=2), beside, strict=True):
        assert graph.shape == (*expected.shape[:2], 0)
        assert graph.offsets.tolist() == [0] and graph.columns.numel() == 0
        assert graph.weights.dtype == expected.weights.dtype
    positions = torch.zeros(2, 3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"no text of the batch has a unit"):
        model(tokens(3, 0), lengths, positions)
