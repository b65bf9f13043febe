"""The paper's ablations of pretraining, and what may keep rows from losing all their edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from glomo_kernels import affinity_mix
from glomo_samples import build
from torch import Tensor

from glomo_dist import recipes
from glomo_dist.model import Glomo, graph_predictor
from glomo_dist.model.config import MARGIN
from glomo_dist.model.graph_predictor import Scores, empty_row_hinge, floored
from glomo_dist.runtime.errors import ConfigError

LENGTHS = torch.tensor([9, 4, 1])


def tokens(B: int = 3, T: int = 9) -> Tensor:
    return torch.randint(0, 23, (B, T), generator=torch.Generator().manual_seed(1))


def edges(model: Glomo) -> Tensor:
    """Edges of every row, both directions in their own order: [2, layers, heads, B, T], -1 at padding."""
    with torch.no_grad():
        forward, backward = (g.dense() > 0 for g in model.graphs(tokens(), LENGTHS))
    counts = torch.stack([forward.sum(-1), backward.sum(-1)])
    counts[1] = torch.stack([
        torch.cat([row[..., :n].flip(-1), row[..., n:]], -1) for row, n in zip(counts[1], LENGTHS, strict=True)
    ])  # fmt: skip
    padding = torch.arange(9) >= LENGTHS[:, None]
    return counts.masked_fill(padding[:, None], -1)


def test_the_ablations_change_one_thing_each() -> None:
    whole = recipes.get("wiki_small")
    changed = {
        name: {
            field
            for field in whole.model.__dataclass_fields__
            if getattr(recipes.get(f"wiki_small_{name}").model, field) != getattr(whole.model, field)
        }
        for name in ("softmax", "coupled", "one_layer", "next_unit")
    }
    assert changed == {
        "softmax": {"sparsity"},
        "coupled": {"coupled", "key_layers", "query_layers"},
        "one_layer": {"layers"},
        "next_unit": {"decoder_steps"},
    }
    for name in changed:
        assert recipes.get(f"wiki_small_{name}").steps == whole.steps


@pytest.mark.parametrize("coupled", [False, True])
def test_coupled_graphs_come_from_the_features_below(coupled: bool) -> None:
    """Other weights in the feature predictor change the second layer's graph if, and only if, they are coupled."""
    model = build(coupled=coupled, sparsity="relu")
    with torch.no_grad():
        before = model.graphs(tokens(), LENGTHS)
        for direction in (model.forwards, model.backwards):
            direction.feature_predictor.cell.weight_ih.mul_(-3)
        after = model.graphs(tokens(), LENGTHS)
    for a, b in zip(before, after, strict=True):
        first, second = (a.dense() - b.dense()).abs().split(4, dim=1)
        assert first.max() == 0
        assert (second.max() > 0) == coupled


def test_coupled_without_convolutions_sees_one_unit_at_a_time() -> None:
    """A unit's first-layer query depends on the unit alone, not on its neighbours."""
    model = build(coupled=True, key_layers=0, query_layers=0)
    x = tokens(1, 6)
    keys, queries = model.forwards.graph_predictor(model.embedding(x))
    assert torch.equal(keys, model.embedding(x)) and torch.equal(queries, keys)


def test_threshold_init() -> None:
    for sparsity in ("threshold", "bias"):
        possible = torch.arange(9).expand(3, 9).masked_fill(torch.arange(9) >= LENGTHS[:, None], -1)
        assert (edges(build(sparsity=sparsity, threshold_init=-9.0)) == possible[:, None]).all()
        assert (edges(build(sparsity=sparsity, threshold_init=9.0)) <= 0).all()
        for value, expected in ((0.25, 0.25), (0.0, 0.0), (None, 1e-4 if sparsity == "bias" else None)):
            predictor = build(sparsity=sparsity, threshold_init=value).forwards.graph_predictor
            x = torch.randn(2, 5, 16, dtype=torch.float64)
            found = [predictor.scores(layer, x, x).threshold for layer in (0, 1)]
            assert expected is None or all((t - expected).abs().max() < 1e-9 for t in found if t is not None)


@pytest.mark.parametrize(("rate", "kept"), [(1.5, [4, 3, 1]), (1e300, [9, 9, 9])])
def test_topk_keeps_as_many_edges_as_the_root_of_the_length_allows(rate: float, kept: list[int]) -> None:
    """Of 9, 4 and 1 units floor(1.5 * 3) = 4, floor(1.5 * 2) = 3, and one; by a huge rate all, where one was left."""
    k = torch.tensor(kept)[:, None]
    possible = torch.minimum(torch.arange(9), k).masked_fill(torch.arange(9) >= LENGTHS[:, None], -1)
    assert (edges(build(sparsity="topk", topk_rate=rate)) == possible[:, None]).all()


@pytest.mark.parametrize("floor", [1, 3])
@pytest.mark.parametrize("sparsity", ["threshold", "bias"])
def test_a_floor_leaves_so_many_edges(sparsity: str, floor: int) -> None:
    found = edges(build(sparsity=sparsity, edge_floor=floor, threshold_init=9.0))
    at_least = (
        torch.arange(9).clamp(max=floor).expand(3, 9).masked_fill(torch.arange(9) >= LENGTHS[:, None], -1)
    )
    assert (found >= at_least[:, None]).all()
    assert (found == at_least[:, None]).any()  # more only where scores are within MARGIN
    # where the threshold is low, the floor changes nothing
    plain, with_floor = (
        edges(build(sparsity=sparsity, threshold_init=-9.0, edge_floor=n)) for n in (0, floor)
    )
    assert torch.equal(plain, with_floor)


def test_a_floor_of_equal_scores_and_its_gradient() -> None:
    """Three equal keys: the floor keeps them all; rows that had no edge get a gradient from a floor of two. Of the
    thresholds, only those that are not lowered have one."""
    ones = torch.ones(1, 1, 4, 2, dtype=torch.float64, requires_grad=True)
    theta = torch.full((1, 1, 4), 7.0, dtype=torch.float64, requires_grad=True)
    spans = torch.tensor([[[0, 0], [0, 1], [0, 2], [0, 3]]])
    low = floored(Scores(ones, ones, theta), spans, 1).threshold
    assert low is not None and low[0, 0].tolist() == pytest.approx([7.0, *[2 - MARGIN] * 3])
    low.sum().backward()
    assert ones.grad is None and theta.grad is not None and theta.grad[0, 0].tolist() == [1, 0, 0, 0]
    positions = torch.arange(9).expand(2, 3, 9)
    for floor in (0, 2):
        model = build(edge_floor=floor, threshold_init=9.0)
        model(tokens(), LENGTHS, positions).loss_sum.backward()
        moved = model.forwards.graph_predictor.query_maps[0].weight.grad
        assert moved is not None and (moved.abs().max() > 0) == bool(floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_floor_holds_for_large_scores_in_every_precision(dtype: torch.dtype) -> None:
    """At a score of 400 the last digit of bfloat16 is 2, twenty times the margin."""
    generator = torch.Generator().manual_seed(0)
    q, k = (8 * torch.randn(2, 3, 20, 16, generator=generator).to(dtype) for _ in range(2))
    at = torch.arange(20)
    spans = torch.stack([torch.zeros_like(at), at], -1).expand(2, 20, 2)
    floor = floored(Scores(q, k, torch.full((2, 3, 20), 1e4, dtype=dtype)), spans, 2)
    _, stats = affinity_mix(q, k, k, floor.threshold, return_stats=True)
    assert (stats.edges == at.clamp(max=2)).all()
    assert floored(Scores(q[:0], k[:0], q[:0, ..., 0]), spans[:0], 2).threshold is not None


def test_a_floor_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is looked for in large batches; each sample has other rows."""
    q, k = torch.randn(2, 3, 2, 6, 4, dtype=torch.float64)
    spans = torch.stack([torch.zeros(3, 6, dtype=torch.int64), torch.randint(0, 7, (3, 6))], -1)
    given = Scores(q, k, torch.full((3, 2, 6), 9.0, dtype=torch.float64)), spans, 3
    whole = floored(*given).threshold
    monkeypatch.setattr(graph_predictor, "FLOOR_ELEMENTS", 1)
    assert torch.equal(floored(*given).threshold, whole)  # type: ignore[arg-type]


def test_scores_are_scaled_or_cosines() -> None:
    plain, scaled, cosine = (
        build(score=score).forwards.graph_predictor for score in ("dot", "scaled", "cosine")
    )
    x = torch.randn(2, 5, 16, dtype=torch.float64)

    def products(predictor) -> Tensor:
        scores = predictor.scores(1, *predictor(x))
        return scores.queries @ scores.keys.transpose(2, 3)

    assert torch.allclose(products(scaled), products(plain) / 8**0.5)
    assert products(cosine).abs().max() <= 1 + 1e-9
    assert torch.equal(products(cosine) > 0, products(plain) > 0)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    predictor = build(distance="rotary", key_layers=0, query_layers=0).forwards.graph_predictor
    same = torch.randn(1, 1, 16, dtype=torch.float64).expand(1, 9, -1)
    scores = predictor.scores(0, *predictor(same))
    found = scores.queries @ scores.keys.transpose(2, 3)
    assert torch.allclose(found[:, :, 1:, 1:], found[:, :, :-1, :-1])
    assert found[0, :, 8].diff().abs().min() > 1e-6
    at = torch.tensor([[7, 2]])
    some = predictor.scores(0, same, same[:, :2], at)
    torch.testing.assert_close(some.queries, scores.queries[:, :, at[0]])
    torch.testing.assert_close(some.threshold, scores.threshold[:, :, :2])  # thresholds know no distance


def test_rotary_2d_scores_depend_on_the_rows_and_columns_between() -> None:
    """Not on the distance in raster order, where the end of a row is as near to the next one as two side by side."""
    rows, columns = 4, 5
    predictor = build(
        distance="rotary_2d", image=(rows, columns), key_layers=0, query_layers=0
    ).forwards.graph_predictor
    same = torch.randn(1, 1, 16, dtype=torch.float64).expand(1, rows * columns, -1)
    scores = predictor.scores(0, *predictor(same))
    found = (scores.queries @ scores.keys.transpose(2, 3)).unflatten(3, (rows, columns))
    found = found.unflatten(2, (rows, columns))  # [B, H, row, column of the query, row, column of the key]
    torch.testing.assert_close(found[:, :, 1:, :, 1:], found[:, :, :-1, :, :-1])
    torch.testing.assert_close(found[:, :, :, 1:, :, 1:], found[:, :, :, :-1, :, :-1])
    # a model that was saved knows which half is which
    by_row, by_column = scores.keys.unflatten(2, (rows, columns)).chunk(2, -1)
    assert (by_row == by_row[:, :, :, :1]).all() and (by_column == by_column[:, :, :1]).all()
    beside, below, row_before = (
        found[:, :, 0, 1, 0, 0],
        found[:, :, 1, 0, 0, 0],
        found[:, :, 1, 0, 0, columns - 1],
    )
    assert (beside - row_before).abs().min() > 1e-6
    assert (beside - below).abs().min() > 1e-6
    at = torch.tensor([[7, 2]])
    some = predictor.scores(0, same, same[:, :2], at)
    torch.testing.assert_close(some.queries, scores.queries[:, :, at[0]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"distance": "rotary_2d"}, "for images: model.image"),
        ({"distance": "rotary_2d", "image": (4, 5), "head_width": 6}, "head_width 6 must be a multiple of 4"),
        ({"distance": "rotary", "head_width": 5}, "head_width 5 must be a multiple of 2"),
    ],
)
def test_distances_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize("sparsity", ["threshold", "topk"])
def test_rotary_in_packed_rows(sparsity: str) -> None:
    """Two documents in one row have the loss of two rows, wherever in the row they stand."""
    model = build(distance="rotary", sparsity=sparsity)
    x, at = tokens(2, 5), torch.tensor([[[1, 3], [2, 4]], [[1, 3], [2, 4]]])
    apart = model(x, torch.tensor([5, 5]), at)
    row, segments = x.reshape(1, 10), torch.tensor([[0] * 5 + [1] * 5])
    together = model(row, torch.tensor([10]), torch.tensor([[[1, 3, 7, 9]], [[1, 3, 7, 9]]]), segments)
    assert together.targets == apart.targets
    torch.testing.assert_close(together.loss_sum, apart.loss_sum)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_penalty_is_the_hinge_of_the_largest_score(layers: int) -> None:
    model = build(empty_row_penalty=3.0, threshold_init=0.25, layers=layers, decoder_steps=2)
    x, lengths, at = tokens(1, 6), torch.tensor([6]), torch.tensor([[[0, 3, 4]], [[2, 5, 1]]])
    expected = 0.0
    for direction, e, positions in zip(
        (model.forwards, model.backwards), (model.embedding(x), model.embedding(x.flip(1))), at, strict=True
    ):
        predictor = direction.graph_predictor
        of_layers = [predictor.scores(layer, *predictor(e)) for layer in range(layers)]
        for scores, t in itertools.product(of_layers, positions[0].tolist()):
            if t > 0:
                best = (scores.queries[0, :, t, None] * scores.keys[0, :, :t]).sum(-1).amax(1) - 0.25
                expected += 3 / layers * (MARGIN - best).clamp(min=0).mean().item() * min(5 - t, 2)
    assert model(x, lengths, at).penalty.item() == pytest.approx(expected, rel=1e-12)
    assert model.eval()(x, lengths, at).penalty.item() == 0


def test_the_penalty_is_that_of_the_learned_threshold() -> None:
    """A floor lowers thresholds without a gradient: what brings them down for good is the penalty."""
    x, lengths, at = tokens(1, 6), torch.tensor([6]), torch.arange(1, 6).expand(2, 1, 5)
    given = {"empty_row_penalty": 1.0, "threshold_init": 3.0, "layers": 1}
    with_floor = build(edge_floor=2, **given)
    assert with_floor(x, lengths, at).penalty == build(**given)(x, lengths, at).penalty > 0
    with_floor(x, lengths, at).penalty.backward()
    assert with_floor.forwards.graph_predictor.thresholds[0].bias.grad > 0


def test_the_penalty_brings_empty_rows_back() -> None:
    model = build(empty_row_penalty=1.0, threshold_init=3.0)
    assert (edges(model) <= 0).all()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    positions = torch.arange(9).expand(2, 3, 9)
    for _ in range(20):
        optimizer.zero_grad()
        terms = model(tokens(), LENGTHS, positions)
        (terms.loss_sum + terms.penalty).backward()
        optimizer.step()
    found = edges(model)
    possible = (torch.arange(9) > 0) & (torch.arange(9) < LENGTHS[:, None])
    empty = (found == 0) & possible[:, None]
    assert empty.sum() < 0.2 * possible.sum() * 2 * 2 * 4
    assert float(terms.penalty.detach()) < 0.2 * float(empty_penalty_at_start())


def empty_penalty_at_start() -> Tensor:
    return build(empty_row_penalty=1.0, threshold_init=3.0)(
        tokens(), LENGTHS, torch.arange(9).expand(2, 3, 9)
    ).penalty.detach()


def test_a_row_that_sees_nothing_costs_nothing() -> None:
    scores = Scores(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), torch.ones(1, 1, 2))
    hinge = empty_row_hinge(scores, torch.tensor([[[0, 0], [0, 1]]]))
    assert hinge.tolist() == [[0.0, pytest.approx(1 + MARGIN)]]
