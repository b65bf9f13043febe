"""The optimizer: which parameters weight decay draws to 0, and at what rate each is trained."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pretrain_samples import PLAIN

from glomo_dist.model import Glomo
from glomo_dist.pretrain.steps.engine import build_optimizer, optimizer_step


@pytest.mark.parametrize("sparsity", ["threshold", "bias"])
@pytest.mark.parametrize("composition", ["gru", "residual"])
def test_matrices_decay_and_vectors_do_not(sparsity: str, composition: str) -> None:
    """The weight w of a threshold w·q + c is a vector, and was drawn to 0 like a matrix."""
    shape = replace(PLAIN.model, vocab_size=9, sparsity=sparsity, composition=composition)
    config = replace(PLAIN, model=shape, weight_decay=0.3, graph_lr_share=0.5, lr=0.2, betas=(0.7, 0.8))
    model = Glomo(config.model)
    groups = build_optimizer(model, config, torch.device("cpu")).param_groups
    of = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        vector = name.endswith(("bias", "bias_ih", "bias_hh")) or any(
            part in name for part in ("norm", "biases", "bias_ih_l", "bias_hh_l", "thresholds")
        )
        assert of[id(p)]["weight_decay"] == (0.0 if vector else 0.3), name
        assert of[id(p)]["betas"] == config.betas
        assert of[id(p)]["lr"] == pytest.approx(0.1 if "graph_predictor" in name else 0.2), name


def test_sgd_has_its_momentum() -> None:
    config = replace(PLAIN, model=replace(PLAIN.model, vocab_size=9), optimizer="sgd", momentum=0.3)
    groups = build_optimizer(Glomo(config.model), config, torch.device("cpu")).param_groups
    assert {group["momentum"] for group in groups} == {0.3}


@pytest.mark.parametrize(
    ("skips", "norm", "applied"), [(False, 2.5, True), (True, 2.5, False), (False, float("inf"), False)]
)
def test_with_zero_a_step_is_applied_where_deepspeed_did_not_skip_it(
    skips: bool, norm: float, applied: bool
) -> None:
    engine = SimpleNamespace(
        skipped_steps=4, zero_optimization_stage=lambda: 1, get_global_grad_norm=lambda: norm
    )
    engine.step = lambda: setattr(engine, "skipped_steps", 4 + skips)
    assert optimizer_step(engine, 1.0) == (applied, norm)
