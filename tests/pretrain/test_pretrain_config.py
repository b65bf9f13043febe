from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pretrain_samples import TINY
from torch import nn

from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.pretrain import PretrainConfig, pretrain
from glomo_dist.pretrain.settings.config import accumulation
from glomo_dist.pretrain.settings.deepspeed_settings import OURS, deepspeed_settings, extra_settings
from glomo_dist.pretrain.settings.schedule import Plateau, exhausted, learning_rate
from glomo_dist.pretrain.steps import engine
from glomo_dist.pretrain.steps.engine import build_engine
from glomo_dist.pretrain.steps.objective import sample_positions
from glomo_dist.runtime.config import from_dict, to_dict
from glomo_dist.runtime.errors import ConfigError, GlomoError


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"window": 1}, "window must be at least 2"),
        ({"steps": 10**330}, "steps must be at most 1,000,000,000,000,000, got 10"),
        ({"window": 10**330}, "window must be at most 1,000,000,000,000,000, got 10"),
        ({"valid_every": 10**16}, "valid_every must be at most 1,000,000,000,000,000, got 10"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        (
            {"lr": 1e40},
            r"lr 1e\+40 with graph_lr_share 0.1 and weight_decay 0 is more than a weight can hold",
        ),
        ({"optimizer": "sgd", "momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": float("inf")}, "weight_decay must not be negative, and finite, got inf"),
        ({"optimizer": "sgd", "momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, and finite, got -0.1"),
        ({"lr": 1e20, "weight_decay": 1e20}, r"lr 1e\+20 with .* weight_decay 1e\+20 is more than a weight"),
        (
            {"lr": 1e20, "graph_lr_share": 1e20},
            r"lr 1e\+20 with graph_lr_share 1e\+20 and .* more than a weight",
        ),
        ({"clip": -1.0}, "clip must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"betas": (0.9,)}, "betas must be a list of 2"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"seed": -1}, r"seed must be in 0\.\.2\^64 - 1, got -1"),
        ({"seed": 2**64}, r"seed must be in 0\.\.2\^64 - 1, got 18446744073709551616"),
        ({"final_lr_share": -0.1}, r"final_lr_share must be in \[0, 1\], got -0.1"),
        ({"final_lr_share": 1.1}, r"final_lr_share must be in \[0, 1\], got 1.1"),
        ({"warmup_steps": 2000}, "warmup_steps 2000 is more than steps 1000"),
        ({"schedule": "plateau"}, "set valid_every"),
        ({"hang_timeout": float("inf")}, "hang_timeout must be positive and at most 1,000,000"),
        ({"hang_timeout": 0.0}, "hang_timeout must be positive"),
        ({"plateau_divisor": 1.0}, "plateau_divisor must be greater than 1 and finite, got 1"),
        ({"graph_lr_share": float("inf")}, "graph_lr_share must be positive and finite"),
        ({"plateau_divisor": float("inf")}, "plateau_divisor must be greater than 1 and finite"),
        ({"zero_stage": 4}, "zero_stage must be 0, 1, 2 or 3"),
        ({"precision": "bf16", "zero_stage": 0}, "bf16 needs zero_stage 1"),
        ({"model": GlomoConfig(image=(28, 28))}, "pixels. Set window 784"),
        (
            {"model": GlomoConfig(image=(5, 5)), "windows": "random"},
            "windows random would cut or join images",
        ),
        (
            {"model": GlomoConfig(image=(5, 5)), "windows": "packed"},
            "windows packed would cut or join images",
        ),
        ({"window": 5}, "decoder_steps 3 of 5 units .window. leave no unit .* Set window 6 or more"),
        ({"model": GlomoConfig(image=(2, 2))}, "3 of 4 units .model.image. .* Prepare larger images, or set"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PretrainConfig(**change)


@pytest.mark.parametrize(
    "name",
    ["global_batch", "micro_batch", "positions_per_sequence", "plateau_patience", "valid_batches",
     "checkpoint_every", "keep_checkpoints", "log_every", "max_bad_steps"],
)  # fmt: skip
def test_what_is_counted_is_one_at_least(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1.*, got 0"):
        PretrainConfig(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["warmup_steps", "valid_every"])
def test_what_may_be_left_out_is_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 0, got -1"):
        PretrainConfig(**{name: -1})  # type: ignore[arg-type]


def test_the_ends_of_ranges_are_allowed() -> None:
    PretrainConfig(seed=2**64 - 1, betas=(0.0, 0.0), final_lr_share=0.0, warmup_steps=1000, hang_timeout=1e6)
    PretrainConfig(window=6, final_lr_share=1.0, clip=None, global_batch=1, keep_checkpoints=1)
    PretrainConfig(model=GlomoConfig(image=(5, 6)), window=30)


def test_batch_that_does_not_split() -> None:
    assert accumulation(TINY, 4) == (2, 1)
    with pytest.raises(ConfigError, match="global_batch 8 is not a multiple of the number of ranks 3"):
        accumulation(TINY, 3)
    with pytest.raises(ConfigError, match="Choose a divisor of 4"):
        accumulation(dataclasses.replace(TINY, micro_batch=3), 2)


def test_the_name_of_a_recipe_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a PretrainConfig, got 'tiny'\. glomo_dist\.recipes\.get"):
        pretrain("tiny", tmp_path / "shards", tmp_path / "run")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_misspelt_key_is_refused_with_a_suggestion() -> None:
    values = to_dict(TINY)
    assert from_dict(PretrainConfig, json.loads(json.dumps(values))) == TINY
    values["warmup_step"] = 3
    with pytest.raises(ConfigError, match=r"'warmup_step'.*Did you mean 'warmup_steps'"):
        from_dict(PretrainConfig, values)


def test_deepspeed_file_may_add_but_not_contradict(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    config = dataclasses.replace(TINY, deepspeed=str(path))
    path.write_text('{"zero_optimization": {"reduce_bucket_size": 1000}, "prescale_gradients": true}')
    settings = deepspeed_settings(config, 900, 2)
    assert settings["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert settings["prescale_gradients"] is True and settings["train_micro_batch_size_per_gpu"] == 4
    path.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(
        ConfigError, match=r"zero\.json: zero_optimization\.stage follows from .*'zero_stage'"
    ):
        deepspeed_settings(config, 900, 2)
    path.write_text('{"zero_optimization": {"reduce_bucket_size": "auto"}}')
    with pytest.raises(ConfigError, match="reduce_bucket_size must be a number of at least 0, got 'auto'"):
        extra_settings(config)  # which a start asks, too, before there are ranks
    path.write_text('{"gradient_clipping": 0}')
    with pytest.raises(ConfigError, match="gradient_clipping"):
        deepspeed_settings(config, 900, 2)
    path.write_text('{"torch_autocast": {"enabled": true, "dtype": "bfloat16"}}')
    with pytest.raises(ConfigError, match="torch_autocast follows from the run's 'precision'"):
        deepspeed_settings(config, 900, 2)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[]", "expected a JSON object of DeepSpeed settings"),
        ('{"zero_optimization": null}', "zero_optimization an object too"),
        *(
            (f'{{"zero_optimization": {{"reduce_bucket_size": {size}}}}}', f"at least 0, got {python}")
            for size, python in (("true", "True"), ("-1", "-1"), ("1e999", "inf"), ("null", "None"))
        ),
        *(
            (
                f'{{"zero_optimization": {{"{key}": {{"device": "nvme"}}}}}}',
                rf"{key} to nvme .*cannot be saved",
            )
            for key in ("offload_optimizer", "offload_param")
        ),
        *((f'{{"{key}": 1}}', f"{key} follows from the run's") for key in OURS if "." not in key),
    ],
)
def test_what_a_deepspeed_file_cannot_say(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"zero\.json: .*{named}"):
        extra_settings(dataclasses.replace(TINY, deepspeed=str(path)))


def test_what_deepspeed_is_told_of_a_run() -> None:
    """Without ZeRO the step itself clips."""
    told = deepspeed_settings(dataclasses.replace(TINY, micro_batch=1, clip=0.5), 900, 2)
    assert told["train_batch_size"] == 8 and told["gradient_accumulation_steps"] == 4
    assert told["gradient_clipping"] == 0.5 and told["zero_optimization"]["reduce_bucket_size"] == 900
    for change in ({"clip": None}, {"zero_stage": 0}):
        assert deepspeed_settings(dataclasses.replace(TINY, **change), 900, 2)["gradient_clipping"] == 0


def test_settings_that_deepspeed_refuses_are_a_setting_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that all ranks agree on; a rank without memory dies, and so does a run without such a file: a bug."""
    error: Exception = AssertionError("offload needs more")

    def initialize(**given: Any) -> None:
        assert given["config"]["zero_force_ds_cpu_optimizer"] is False
        raise error

    def agree_on(found: GlomoError | None) -> None:
        if found is not None:
            raise found

    monkeypatch.setattr("deepspeed.initialize", initialize)
    ranks: Any = SimpleNamespace(world=1, device=torch.device("cpu"), agree_on=agree_on)
    path = tmp_path / "zero.json"
    path.write_text('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}')
    config = dataclasses.replace(TINY, deepspeed=str(path))
    with pytest.raises(ConfigError) as raised:
        build_engine(nn.Linear(2, 2), config, ranks)
    assert f"settings in {path}: AssertionError: offload needs more. Mend or remove" in str(raised.value)
    assert raised.value.__cause__ is error
    with pytest.raises(AssertionError, match="offload needs more"):
        build_engine(nn.Linear(2, 2), TINY, ranks)
    error = NotImplementedError("ZeRO 2 with this")  # a RuntimeError, as what befalls one rank
    with pytest.raises(ConfigError, match=r"zero\.json: NotImplementedError: ZeRO 2 with this"):
        build_engine(nn.Linear(2, 2), config, ranks)
    error = MemoryError("no room")
    with pytest.raises(MemoryError, match="no room"):
        build_engine(nn.Linear(2, 2), config, ranks)
    error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        build_engine(nn.Linear(2, 2), config, ranks)
    monkeypatch.setattr(engine, "build_optimizer", lambda *_: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        build_engine(nn.Linear(2, 2), config, ranks)


def test_cosine_with_warmup() -> None:
    config = PretrainConfig(steps=101, warmup_steps=10, lr=2.0, final_lr_share=0.1)
    rates = [learning_rate(config, step, Plateau()) for step in range(101)]
    assert rates[:2] == [0.2, 0.4] and rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.1) and rates[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("warmup", [0, 1, 4, 5])
def test_cosine_is_down_at_the_last_step(warmup: int) -> None:
    config = PretrainConfig(steps=6, warmup_steps=warmup, lr=2.0, final_lr_share=0.1)
    assert learning_rate(config, 5, Plateau()) == pytest.approx(0.2)


def test_plateau_counts_and_stops() -> None:
    config = PretrainConfig(lr=8.0, schedule="plateau", valid_every=1, plateau_patience=2)
    state = Plateau()
    for loss in (3.0, 2.0, 2.5, 1.0, 1.0, 1.5):
        state = state.after(loss, config.plateau_patience)
    assert state == Plateau(1.0, 0, 1) and learning_rate(config, 7, state) == 4.0
    for _ in range(2 * 5):
        assert not exhausted(config, state)
        state = state.after(1.0, config.plateau_patience)
    assert exhausted(config, dataclasses.replace(state, divided=7)) and not exhausted(config, state)
    assert not exhausted(PretrainConfig(), Plateau(divided=7))  # which counts validations of any run


@pytest.mark.parametrize("window", [5, 6])
def test_the_least_window_is_the_least_that_trains_graphs(window: int) -> None:
    torch.manual_seed(0)
    model = Glomo(GlomoConfig(vocab_size=9, width=8, heads=2, sparsity="square"))
    steps = model.config.decoder_steps
    at = torch.from_numpy(sample_positions(np.arange(2), np.full(2, window), 20, steps, seed=0))
    model(torch.randint(9, (2, window)), torch.full((2,), window), at).loss_sum.backward()
    grads = [p.grad for p in model.forwards.graph_predictor.parameters() if p.grad is not None]
    assert any(g.any() for g in grads) == (window >= steps + 3)
