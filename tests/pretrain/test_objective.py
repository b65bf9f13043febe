from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrain_samples import TINY

from glomo_dist.model import Glomo
from glomo_dist.pretrain.loss import loss_scale, predicted_units, sample_positions


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
    assert positions.tolist() == FROZEN


FROZEN = [[[26, 4, 20], [0, 0, 0]], [[13, 5, 2], [0, 0, 0]]]


def test_positions_reject_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[B\]"):
        sample_positions(np.arange(3), np.arange(4), 2, 3, 0)


def test_predicted_units_is_what_the_model_counts() -> None:
    torch.manual_seed(0)
    config = TINY.model.__class__(vocab_size=11, width=8, heads=2, layers=1)
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
