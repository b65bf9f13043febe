"""Packed rows: every document is computed as if it were alone, in both directions, for every kind of graph."""

from __future__ import annotations

import itertools

import glomo_samples
import numpy as np
import pytest
import torch
from glomo_samples import KINDS
from torch import Tensor

from glomo_dist import recipes
from glomo_dist.model import Glomo
from glomo_dist.model.graph_stats import row_means
from glomo_dist.model.packing import Apart, Packed

ROWS = [[7, 1, 5, 2], [3], [2, 2, 2, 2, 9], [17]]  # lengths of the documents of each row
WIDTH = 17


def build(**changes: object) -> Glomo:
    return glomo_samples.build(**{"layers": 3, **changes})  # type: ignore[arg-type]


def packed_rows() -> tuple[Tensor, Tensor, Tensor]:
    """tokens [B, T] with rubbish in the padding, lengths [B], segments [B, T]."""
    tokens = torch.randint(0, 23, (len(ROWS), WIDTH), generator=torch.Generator().manual_seed(1))
    segments = torch.full((len(ROWS), WIDTH), -1)
    for row, documents in enumerate(ROWS):
        ids = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents))
        segments[row, : len(ids)] = ids
    return tokens, (segments >= 0).sum(1), segments


def documents() -> list[tuple[int, int, int]]:
    """Row, begin, length of each."""
    return [
        (row, begin, n)
        for row, lengths in enumerate(ROWS)
        for begin, n in zip(itertools.accumulate([0, *lengths]), lengths, strict=False)
    ]


def sampled(seed: int, count: int = 12) -> Tensor:
    """Positions int64 [2, B, count] among the real units of each row, so most documents have some."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, sum(lengths), (2, count), generator=draw) for lengths in ROWS]
    return torch.stack(rows, dim=1)


def alone(model: Glomo, tokens: Tensor, positions: Tensor) -> tuple[list[float], int]:
    """Losses of the documents, each in a row of its own; gradients add up in the model."""
    losses, count = [], 0
    for row, begin, n in documents():
        inside = [at[(at >= begin) & (at < begin + n)] - begin for at in positions[:, row]]
        size = max(len(at) for at in inside)
        total = torch.zeros((), dtype=torch.float64)
        # the two directions have different numbers of sampled units: one pass for each, the other at the last
        # unit, which has nothing to predict
        for direction in range(2):
            at = torch.full((2, 1, max(size, 1)), n - 1)
            at[direction, 0, : len(inside[direction])] = inside[direction]
            terms = model(tokens[row : row + 1, begin : begin + n], torch.tensor([n]), at)
            total, count = total + terms.loss_sum + terms.penalty, count + int(terms.targets)
        if total.requires_grad:
            total.backward()
        losses.append(total.item())
    return losses, count


VARIANTS = (
    {"coupled": True},
    {"coupled": True, "sparsity": "topk", "composition": "residual"},
    {"score": "cosine", "threshold_init": 0.2, "empty_row_penalty": 2.0},
    {"edge_floor": 2, "threshold_init": 0.5, "sparsity": "bias"},
    {"layers": 1, "empty_row_penalty": 0.5},
)


@pytest.mark.parametrize(
    "changes",
    [
        *({"sparsity": s} for s in KINDS),
        *({"composition": c} for c in ("lstm", "residual")),
        *VARIANTS,
    ],
    ids=str,
)
def test_packed_rows_give_the_losses_and_gradients_of_the_documents(changes: dict[str, object]) -> None:
    model = build(**{"topk_rate": 1.5, **changes})
    tokens, lengths, segments = packed_rows()
    positions = sampled(3)
    together = model(tokens, lengths, positions, segments)
    together_sum = together.loss_sum + together.penalty
    together_sum.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses, count = alone(model, tokens, positions)
    assert int(together.targets) == count
    assert together_sum.item() == pytest.approx(sum(losses), rel=1e-12)
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
        assert torch.allclose(gradients[name], p.grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("recipe", sorted(recipes.RECIPES))
def test_every_recipe_in_evaluation(recipe: str) -> None:
    """Batch statistics depend on the whole batch by their nature, so models with them are compared in evaluation."""
    model = glomo_samples.build(recipes.get(recipe).model, vocab_size=23, width=16, heads=4, head_width=8)
    tokens, lengths, segments = packed_rows()
    for _ in range(3):  # fills running statistics
        model(tokens, lengths, sampled(1), segments)
    model.eval()
    with torch.no_grad():
        together = model(tokens, lengths, sampled(4), segments)
        losses, count = alone(model, tokens, sampled(4))
    assert together.loss_sum.item() == pytest.approx(sum(losses), rel=1e-12)
    assert int(together.targets) == count


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("sparsity", KINDS)
def test_a_document_does_not_depend_on_its_neighbours(sparsity: str, norm: str) -> None:
    """Change every unit of one document: the loss sampled in the others stays the same to the bit."""
    model = build(sparsity=sparsity, norm=norm).eval()
    tokens, lengths, segments = packed_rows()
    for document in range(len(ROWS[0])):
        inside = segments[0] == document
        changed = tokens.clone()
        changed[0, inside] = (tokens[0, inside] + 1 + torch.arange(int(inside.sum())) % 20) % 23
        others = torch.nonzero(~inside & (segments[0] >= 0)).squeeze(1)
        at = others.expand(2, 1, -1)
        with torch.no_grad():
            before = model(tokens[:1], lengths[:1], at, segments[:1]).loss_sum
            after = model(changed[:1], lengths[:1], at, segments[:1]).loss_sum
            own = [
                model(x[:1], lengths[:1], inside.nonzero().T.expand(2, 1, -1), segments[:1]).loss_sum
                for x in (tokens, changed)
            ]
        assert before == after
        assert own[0] != own[1] or int(inside.sum()) == 1


def test_one_document_a_row_is_the_row() -> None:
    model = build(sparsity="threshold")
    tokens = packed_rows()[0]
    lengths = torch.tensor([17, 4, 9, 12])
    segments = torch.where(torch.arange(WIDTH) < lengths[:, None], 0, -1)
    positions = torch.stack([torch.randint(0, int(n), (2, 5)) for n in lengths], dim=1)
    plain, packed = model(tokens, lengths, positions), model(tokens, lengths, positions, segments)
    assert packed.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-13)
    assert packed.targets == plain.targets


@pytest.mark.parametrize("sparsity", KINDS)
def test_padding_of_packed_rows_has_no_loss(sparsity: str) -> None:
    """Also in a row without a document, and sampled behind the last document."""
    model = build(sparsity=sparsity, empty_row_penalty=1.0 if sparsity == "threshold" else 0.0)
    tokens, lengths, segments = packed_rows()
    positions = sampled(5)
    alone = model(tokens, lengths, positions, segments)
    nothing = torch.full((1, WIDTH), -1)
    more = model(
        torch.cat([tokens, tokens[:1]]),
        torch.cat([lengths, torch.zeros(1, dtype=torch.int64)]),
        torch.cat([positions, torch.arange(12).expand(2, 1, -1)], dim=1),
        torch.cat([segments, nothing]),
    )
    assert more.targets == alone.targets
    for name in ("loss_sum", "penalty"):
        assert getattr(more, name).item() == pytest.approx(getattr(alone, name).item(), rel=1e-13), name
    behind = model(tokens[1:2], lengths[1:2], torch.arange(3, 15).expand(2, 1, -1), segments[1:2])
    only = model(tokens[:1], torch.zeros(1, dtype=torch.int64), torch.arange(12).expand(2, 1, -1), nothing)
    assert all(x.targets == 0 and x.loss_sum == 0 for x in (behind, only))


@pytest.mark.parametrize("sparsity", ["threshold", "topk"])
def test_statistics_are_those_of_the_documents(sparsity: str) -> None:
    model = build(sparsity=sparsity).train()
    model.collect_stats = True
    tokens, lengths, segments = packed_rows()
    # all real units once, those of short rows again and again: rows of padding count for nothing
    everywhere = torch.stack([torch.arange(WIDTH) for _ in ROWS]).expand(2, -1, -1)
    model(tokens, lengths, everywhere, segments)
    found = row_means(model.last_sums)
    alone = torch.zeros(len(documents()), WIDTH, dtype=torch.int64)
    sizes = torch.tensor([n for _, _, n in documents()])
    for i, (row, begin, n) in enumerate(documents()):
        alone[i, :n] = tokens[row, begin : begin + n]
    model(alone, sizes, torch.arange(WIDTH).expand(2, len(alone), -1))
    for name in found:
        assert torch.allclose(found[name], row_means(model.last_sums)[name], atol=1e-6), name


def test_apart_and_back() -> None:
    _, _, segments = packed_rows()
    apart = Apart.of(Packed.of(segments))
    assert apart.lengths.tolist() == [n for _, _, n in documents()]
    x = torch.randn(len(ROWS), 2, WIDTH, 3)
    parts = apart.split(x)
    for i, (row, begin, n) in enumerate(documents()):
        assert torch.equal(parts[i, :, :n], x[row, :, begin : begin + n])
    real = (segments >= 0)[:, None, :, None]
    assert torch.equal(apart.join(parts), x * real)


def test_reversal_keeps_documents_in_place() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 2, 2, -1, -1], [0] * 8])
    assert Packed.of(segments).reversal().tolist() == [[2, 1, 0, 3, 5, 4, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0]]
    assert np.array_equal(Packed.of(segments).before()[0, :6].numpy(), [0, 1, 2, 0, 0, 1])


def test_images_are_not_packed() -> None:
    model = build(image=(2, 2))
    with pytest.raises(ValueError, match="images cannot be packed"):
        model(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([4]), torch.zeros(2, 1, 1, dtype=torch.int64),
              torch.zeros(1, 4, dtype=torch.int64))  # fmt: skip
