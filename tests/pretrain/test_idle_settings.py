"""Settings without effect: refused or warned of where a run begins, and no reason not to continue an old one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_samples import PLAIN, TINY, begun

from glomo_dist.cli import main
from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.pretrain import PretrainConfig, pretrain
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.settings.idle import RULES, warnings
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import CheckpointError, ConfigError

NO_CONVOLUTIONS = {"key_layers": 0, "query_layers": 0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"momentum": 0.5}, "momentum 0.5 is for optimizer sgd"),
        ({"optimizer": "sgd", "betas": (0.9, 0.99)}, r"betas \(0.9, 0.99\) is for optimizer adamw"),
        ({"model": GlomoConfig(value="features")}, "value features is for composition residual, got 'gru'"),
        ({"model": GlomoConfig(topk_rate=0.5)}, "topk_rate 0.5 is for sparsity topk, got 'threshold'"),
        ({"schedule": "constant", "final_lr_share": 0.0}, "final_lr_share 0.0 is for schedule cosine"),
        ({"plateau_patience": 5}, "5 is for schedule plateau, got 'cosine'.*or plateau_patience 3"),
        ({"plateau_divisor": 4.0}, "plateau_divisor 4.0 is for schedule plateau"),
        ({"valid_batches": 2}, "2 is for valid_every 1 or more, got 0.*Set valid_every 1 or more, or .* 8"),
    ],
)  # fmt: skip
def test_what_another_choice_would_need_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PretrainConfig(**change)


WARNED = [
    ({"kernel_size": 5, **NO_CONVOLUTIONS}, "model.kernel_size 5 is for key_layers or query_layers 1 or more, got 0"),
    ({"norm": "batch", **NO_CONVOLUTIONS}, "model.norm batch is for key_layers or query_layers 1 or more, got 0"),
    ({"coupled": True, "layers": 1}, "model.coupled True is for layers 2 or more, got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "named"), WARNED)
def test_what_a_sweep_of_sizes_comes_to_is_warned_of(
    change: dict[str, Any], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = PretrainConfig(GlomoConfig(vocab_size=9, **change))
    assert warnings(config) == [f"WARNING: {named}, and changes nothing in this run."]
    flags = [
        f"--model.{name.replace('_', '-')}={value}" for name, value in change.items() if name != "coupled"
    ]
    assert main(["plan", *flags, *(["--model.coupled"] if "coupled" in change else [])]) == 0
    assert capfd.readouterr().err.strip() == warnings(config)[0]


@pytest.mark.parametrize("layers", [(1, 0), (0, 1)])
def test_what_has_an_effect_is_not_warned_of(layers: tuple[int, int]) -> None:
    keys, queries = layers
    model = GlomoConfig(
        kernel_size=5, norm="batch", key_layers=keys, query_layers=queries, coupled=True, layers=2
    )
    assert not warnings(PretrainConfig(model))


def test_settings_of_zero_without_zero_are_warned_of() -> None:
    """As a file with offloading, which stage 0 does not do."""
    config = PretrainConfig(zero_stage=0, deepspeed="zero.json")
    given = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    (found,) = warnings(config, given)
    assert "zero_optimization in zero.json is for zero_stage 1 or more, got 0" in found
    assert not warnings(config, {"prescale_gradients": True})
    assert not warnings(PretrainConfig(zero_stage=1, deepspeed="zero.json"), given)


@pytest.mark.parametrize(
    "change", [*(change for change, _ in WARNED), {"value": "features"}, {"topk_rate": 0.5}]
)
def test_it_changes_nothing(change: dict[str, Any]) -> None:
    """Weights and loss are those of the default, to the bit."""
    small = GlomoConfig(vocab_size=9, width=16, heads=2, **{"layers": 2, **change})
    (idle,) = (rule for rule in RULES if rule.name.removeprefix("model.") in change)
    name = idle.name.removeprefix("model.")
    found = []
    for config in (small, dataclasses.replace(small, **{name: getattr(GlomoConfig, name)})):
        torch.manual_seed(0)
        model = Glomo(config)
        at = torch.randint(5, (2, 2, 3))
        found.append(model(torch.randint(9, (2, 8)), torch.tensor([8, 8]), at).loss_sum.item())
    assert found[0] == found[1]


def test_an_old_run_with_a_setting_without_effect_is_continued_without_it(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = begun(TINY, tiny_shards, tmp_path / "run")
    value = json_files.read_json(run / "config.json")
    value["config"]["valid_batches"] = 2
    value["config"]["model"]["topk_rate"] = 0.5
    json_files.write_json(run / "config.json", value)
    assert run_folder.check(run, run_folder.describe(resolve(TINY, tiny_shards, run), 2))
    value["config"]["final_lr_share"] = 0.5
    json_files.write_json(run / "config.json", value)
    with pytest.raises(CheckpointError, match=r"differs: config\.final_lr_share: 0\.5 there, 0\.1 now\. To"):
        run_folder.check(run, run_folder.describe(resolve(TINY, tiny_shards, run), 2))


def test_a_key_that_deepspeed_passes_over_is_refused_in_a_new_run_and_warned_of_in_an_old_one(
    tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once it is mended, the run begins in the same folder."""
    file = tmp_path / "zero.json"
    config = dataclasses.replace(PLAIN, steps=1, warmup_steps=0, deepspeed=str(file))
    file.write_text('{"zero_optimisation": {"overlap_comm": true}}')
    with pytest.raises(
        ConfigError, match=r"zero\.json: .*'zero_optimisation'.*n 'zero_optimization'\? Mend or re"
    ):
        pretrain(config, tiny_shards, tmp_path / "run", 2)
    old = begun(config, tiny_shards, tmp_path / "old", 1)
    pretrain(config, tiny_shards, old)
    assert "WARNING: " in (said := capfd.readouterr().err) and "know the key 'zero_optimisation'" in said
    file.write_text('{"zero_optimization": {"overlap_comm": true}}')
    pretrain(config, tiny_shards, tmp_path / "run")


def test_plan_takes_the_settings_of_validation_without_its_shards(tiny_shards: Path) -> None:
    flags = ["--valid-every", "5", "--valid-batches", "2", "--schedule", "plateau", "--plateau-patience", "5"]
    assert main(["plan", "--data", str(tiny_shards), *flags]) == 0
