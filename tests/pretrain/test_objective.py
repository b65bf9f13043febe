from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.pretrain.steps.objective import loss_scale, predicted_units, sample_positions


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 300)), min_size=1, max_size=12),
    st.integers(1, 25),
    st.integers(1, 5),
    st.integers(0, 2**63 - 1),
)
def test_positions_depend_on_id_alone(
    samples: list[tuple[int, int]], count: int, steps: int, seed: int
) -> None:
    ids, lengths = (np.array(column) for column in zip(*samples, strict=True))
    positions = sample_positions(ids, lengths, count, steps, seed)
    assert positions.shape == (2, len(ids), count) and positions.dtype == np.int64
    assert (positions >= 0).all()
    assert (positions < np.maximum(lengths - steps, 1)[None, :, None]).all()
    order = np.random.default_rng(0).permutation(len(ids))
    permuted = sample_positions(ids[order], lengths[order], count, steps, seed)
    assert (permuted == positions[:, order]).all()
    fewer = sample_positions(ids[:1], lengths[:1], max(1, count - 1), steps, seed)
    assert (fewer == positions[:, :1, : fewer.shape[2]]).all()


def test_positions_are_uniform_and_independent() -> None:
    ids = np.arange(20_000)
    positions = sample_positions(ids, np.full(20_000, 13), 4, 3, seed=5)
    for direction in range(2):
        for index in range(4):
            counts = np.bincount(positions[direction, :, index], minlength=10)
            assert len(counts) == 10
            # chi-square with 9 degrees of freedom: 33.7 has probability 1e-4
            assert ((counts - 2000) ** 2 / 2000).sum() < 33.7
    flat = positions.reshape(2, -1).astype(float)
    assert abs(np.corrcoef(flat)[0, 1]) < 0.02, "directions must not share their draws"
    assert abs(np.corrcoef(positions[0].T.astype(float))[0, 1]) < 0.03
    assert abs(np.corrcoef(positions[0, :-1, 0], positions[0, 1:, 0])[0, 1]) < 0.03
    other = sample_positions(ids, np.full(20_000, 13), 4, 3, seed=6)
    assert 0.05 < (other == positions).mean() < 0.15


def test_positions_of_a_known_seed() -> None:
    """Frozen: another value here means that no run in progress can be resumed."""
    positions = sample_positions(np.array([0, 7]), np.array([30, 2]), 3, 3, seed=1)
    assert positions.tolist() == [[[26, 4, 20], [0, 0, 0]], [[13, 5, 2], [0, 0, 0]]]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(1, 30),
    st.integers(1, 4),
    st.integers(0, 2**63 - 1),
)
def test_positions_of_packed_rows(rows: list[list[int]], count: int, steps: int, seed: int) -> None:
    lengths = np.array([sum(row) for row in rows])
    segments = np.full((len(rows), int(lengths.max())), -1)
    for b, row in enumerate(rows):
        segments[b, : sum(row)] = np.repeat(np.arange(len(row)), row)
    ids = np.arange(len(rows)) + 5
    positions = sample_positions(ids, lengths, count, steps, seed, segments)
    predicted = 0
    for b, row in enumerate(rows):
        ends = np.cumsum(row)
        for at in positions[:, b].ravel():
            document = segments[b, at]
            assert document >= 0
            left = ends[document] - at
            assert at - (ends[document] - row[document]) < max(row[document] - steps, 1)
            predicted += min(left - 1, steps)
        alone = sample_positions(
            ids[b : b + 1], lengths[b : b + 1], count, steps, seed, segments[b : b + 1, : lengths[b]]
        )
        assert (alone == positions[:, b : b + 1]).all()
    assert predicted_units(lengths, positions, steps, segments) == predicted


def test_packed_positions_are_uniform_over_the_units_that_have_a_context() -> None:
    segments = np.tile([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2], (4000, 1))
    positions = sample_positions(np.arange(4000), np.full(4000, 11), 5, 2, 9, segments)
    counts = np.bincount(positions.ravel(), minlength=11)
    possible = [0, 1, 2, 5, 7, 8]  # of documents of 5, 2 and 4 units, two are left to predict (of 2, one)
    assert not np.delete(counts, possible).any()
    mean = 40_000 / len(possible)
    assert ((counts[possible] - mean) ** 2 / mean).sum() < 25.7  # chi-square, 5 degrees of freedom, p = 1e-4


def test_positions_reject_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[B\]"):
        sample_positions(np.arange(3), np.arange(4), 2, 3, 0)


def test_predicted_units_is_what_the_model_counts() -> None:
    torch.manual_seed(0)
    config = GlomoConfig(vocab_size=11, width=8, heads=2, layers=1)
    lengths = np.array([2, 3, 4, 9, 20])
    positions = sample_positions(np.arange(5), lengths, 6, config.decoder_steps, 3)
    tokens = torch.randint(0, 11, (5, 20))
    terms = Glomo(config)(tokens, torch.from_numpy(lengths), torch.from_numpy(positions))
    assert predicted_units(lengths, positions, config.decoder_steps) == int(terms.targets)


def test_loss_scale_undoes_means_of_unequal_parts() -> None:
    """Averaging over ranks and dividing by passes, as DeepSpeed does, must give the gradient of the one mean."""
    x = torch.linspace(-1, 1, 24, dtype=torch.float64)
    parts = [[x[:3], x[3:4]], [x[4:20], x[20:]]]  # [rank][pass], unequal on purpose
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    scale = loss_scale(ranks=2, passes=2, targets=24)
    gradients = []
    for passes in parts:
        total = sum(((w * part - 1) ** 2).sum() * scale / 2 for part in passes)
        gradients.append(torch.autograd.grad(total, w)[0])
    wanted = torch.autograd.grad(((w * x - 1) ** 2).mean(), w)[0]
    assert torch.allclose(sum(gradients) / 2, wanted, rtol=1e-12)
    assert loss_scale(ranks=2, passes=3, targets=1) == loss_scale(ranks=2, passes=3, targets=0) == 6
