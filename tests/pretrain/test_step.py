"""One optimizer step: what is trained on, and what is reported."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glomo_dist.data import Batch
from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.model.graph_stats import row_means
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.steps.clock import Clock
from glomo_dist.pretrain.steps.step import train_step, valid_loss


class Alone:
    """An engine of one rank without ZeRO that keeps its gradients.

    given: the sequences of each pass.  spoilt: the pass, from 0, whose loss is infinite, with finite gradients.
    """

    def __init__(self, model: Glomo) -> None:
        self.module = model
        self.given: list[tuple[torch.Tensor, ...]] = []
        self.spoilt, self.steps = -1, 0

    def __call__(self, *sequences):
        self.given.append(sequences)
        terms = self.module(*sequences)
        bad = len(self.given) - 1 == self.spoilt
        return terms._replace(loss_sum=terms.loss_sum - torch.inf) if bad else terms

    def eval(self) -> None:
        self.module.eval()

    def train(self) -> None:
        self.module.train()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps += 1

    def zero_optimization_stage(self) -> int:
        return 0


def inputs(penalty: float, micro_batch: int | None = None):
    """For a step over 6 rows: engine, batch, configuration and ranks."""
    model_config = GlomoConfig(vocab_size=20, width=8, heads=2, threshold_init=0.5, empty_row_penalty=penalty)
    config = PretrainConfig(
        model=model_config, window=12, global_batch=6, micro_batch=micro_batch, clip=None, zero_stage=0
    )
    torch.manual_seed(0)
    model = Glomo(model_config).train()
    lengths = torch.tensor([12, 3, 7, 12, 1, 9])
    tokens = torch.randint(0, 20, (6, 12), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, lengths, torch.arange(6), None, None)  # type: ignore[arg-type]
    return Alone(model), batch, config, SimpleNamespace(world=1, device=torch.device("cpu"), sum=list)


def step(penalty: float, micro_batch: int | None = None):
    """The result and the gradients of it."""
    engine, batch, config, ranks = inputs(penalty, micro_batch)
    result = train_step(engine, batch, config, ranks, Clock(ranks.device), with_stats=True)  # type: ignore[arg-type]
    gradients = {name: p.grad for name, p in engine.module.named_parameters() if p.grad is not None}
    return result, gradients


def test_each_of_two_equal_ranks_does_the_step_of_one():
    alone, expected = step(4.0)
    engine, batch, config, ranks = inputs(4.0)
    config = replace(config, global_batch=12)
    shares = []

    def summed(values):
        shares.append(values)
        return [
            2 * value + (len(values) > 2) for value in values
        ]  # with a row, an edge, ... more of the other

    ranks.world, ranks.sum = 2, summed
    result = train_step(engine, batch, config, ranks, Clock(ranks.device), with_stats=True)
    assert (alone.units, result.units, result.targets) == (44, 88, 2 * alone.targets)
    assert result.loss == pytest.approx(alone.loss, rel=1e-6)
    means = row_means(torch.tensor(shares[-1], dtype=torch.float64).view(4, 2, 2) * 2 + 1)
    assert result.stats == {name: mean.tolist() for name, mean in means.items()}
    for name, p in engine.module.named_parameters():  # of which an engine takes the mean over ranks
        assert p.grad is None or torch.allclose(p.grad, expected[name], rtol=1e-5)


def test_a_loss_that_is_not_finite_in_one_pass_leaves_the_weights_and_tells_its_rows():
    engine, batch, config, ranks = inputs(0.0, micro_batch=2)
    engine.spoilt = 1
    laps = []
    clock = Clock(ranks.device, lambda part, step: laps.append(part))
    result = train_step(engine, batch, config, ranks, clock, with_stats=False)
    assert not result.applied and result.suspects == [2, 3] and not result.stats
    assert engine.module.last_sums is None, "nobody asked for statistics"
    assert all(p.grad is None for p in engine.module.parameters()), "the optimizer passes over them"
    assert engine.steps == 3, "one for each pass, the last of which is the optimizer's"
    assert laps == ["data", *["forward", "backward"] * 3, "optimizer"]


def test_gradients_are_clipped_and_their_norm_told_as_it_was():
    plain, gradients = step(0.0)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert plain.grad_norm == pytest.approx(float(norm), rel=1e-5)
    engine, batch, config, ranks = inputs(0.0)
    config = replace(config, clip=plain.grad_norm / 4)
    result = train_step(engine, batch, config, ranks, Clock(ranks.device), with_stats=False)
    assert result.grad_norm == pytest.approx(plain.grad_norm)
    for name, p in engine.module.named_parameters():
        assert p.grad is None or torch.allclose(p.grad, gradients[name] / 4, rtol=1e-4)


def test_the_sampled_units_are_those_of_the_settings_and_packed_rows_stay_apart():
    engine, batch, config, ranks = inputs(0.0)
    segments = torch.where(torch.arange(12) < batch.lengths[:, None], torch.arange(12) // 6, -1)
    batch = replace(batch, segments=segments)
    for seed in (0, 1):
        settings = replace(config, seed=seed, positions_per_sequence=5)
        train_step(engine, batch, settings, ranks, Clock(ranks.device), with_stats=False)
    first, second = engine.given
    assert first[2].shape == (2, 6, 5) and not torch.equal(first[2], second[2])
    assert torch.equal(first[3], segments)


def test_the_penalty_is_trained_on_and_not_reported():
    without, plain = step(0.0)
    result, gradients = step(4.0)
    assert result.applied and result.loss == without.loss and result.targets == without.targets
    name = "forwards.graph_predictor.query_maps.0.weight"
    assert (gradients[name] - plain[name]).abs().max() > 1e-3
    # the decoder knows nothing of it
    other = "forwards.decoder.rnn.weight_hh_l0"
    torch.testing.assert_close(gradients[other], plain[other])


@pytest.mark.parametrize("penalty", [0.0, 4.0])
def test_accumulation_is_the_same_step(penalty):
    whole, expected = step(penalty)
    parts, gradients = step(penalty, micro_batch=2)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    for name in ("empty_rows", "edges_per_row", "entropy"):  # the passes have unequal numbers of rows
        np.testing.assert_allclose(parts.stats[name], whole.stats[name], rtol=1e-6)
    for name in expected:  # an engine divides by the number of passes; this one does not
        torch.testing.assert_close(gradients[name] / 3, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_validation_needs_no_more_rows_at_a_time_than_training(micro_batch, monkeypatch):
    engine, batch, config, ranks = inputs(0.0)
    expected = valid_loss(engine, [batch, batch], config, ranks, Clock(ranks.device))  # type: ignore[arg-type]
    engine, batch, config, ranks = inputs(0.0, micro_batch)
    passes, forward, laps = [], engine.module.forward, []

    def recorded(*sequences):
        passes.append((len(sequences[0]), engine.module.training))
        assert not torch.is_grad_enabled()
        return forward(*sequences)

    monkeypatch.setattr(engine.module, "forward", recorded)
    shares = []
    ranks.sum = lambda values: shares.append(values) or [values[0] + 100, values[1] + 7]  # of another rank
    clock = Clock(ranks.device, lambda part, step: laps.append(part))
    loss = valid_loss(engine, [batch, batch], config, ranks, clock)  # type: ignore[arg-type]
    assert laps == ["valid"] * 2, "each batch is a sign of life"
    assert passes == [(micro_batch, False)] * (2 * 6 // micro_batch) and engine.module.training
    ((own, targets),) = shares
    assert own / targets == pytest.approx(expected, rel=1e-6)
    assert loss == pytest.approx((own + 100) / (targets + 7), rel=1e-12)


class Asked(TorchDispatchMode):
    """Names the operations by which the host waits for a number of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.overloadpacket)
        picks_by_mask = "index" in name and any(x is not None and x.dtype == torch.bool for x in args[1])
        if picks_by_mask or name in ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_between_the_passes_nothing_waits_for_the_device(micro_batch, monkeypatch):
    engine, batch, config, ranks = inputs(4.0, micro_batch)
    monkeypatch.setattr("glomo_kernels.checks.readable", lambda tensor: False)  # what is on a GPU is not read
    found: dict[str, list[str]] = {}
    with Asked() as asked:
        clock = Clock(ranks.device, lambda part, step: found.update({part: asked.names.copy()}))
        train_step(engine, batch, config, ranks, clock, with_stats=False)  # type: ignore[arg-type]
    assert found["data"] == found["forward"] == found["backward"]  # each as of its last lap
    assert len(found["optimizer"]) > len(found["backward"])
