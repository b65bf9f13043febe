"""cluster/deepspeed: DeepSpeed takes every file, and what the run sets itself is not in them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_samples import CLUSTER

from glomo_dist import recipes
from glomo_dist.pretrain.settings.deepspeed_settings import OURS, deepspeed_settings, extra_settings
from glomo_dist.runtime.errors import ConfigError

FILES = sorted((CLUSTER / "deepspeed").glob("*.json"))


def accepted(settings: dict) -> object:
    """What DeepSpeed itself makes of the settings; raises what it raises."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    # the batch sizes fit whatever number of ranks DeepSpeed believes to see here: one
    return DeepSpeedConfig({**settings, "gradient_accumulation_steps": None, "train_batch_size": None})


def whole(path: Path, stage: int) -> dict:
    config = replace(recipes.get("tiny"), deepspeed=str(path), zero_stage=stage)
    return deepspeed_settings(config, parameters=10**6, ranks=2)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_deepspeed_takes_it(path: Path) -> None:
    stage = int(path.stem[-1])
    config = accepted(whole(path, stage))
    assert config.zero_config.stage == stage  # type: ignore[attr-defined]
    for key, value in json.loads(path.read_text())["zero_optimization"].items():
        name = {"stage3_prefetch_bucket_size": "prefetch_bucket_size"}.get(key, key)
        name = {"stage3_param_persistence_threshold": "param_persistence_threshold"}.get(key, name)
        assert getattr(config.zero_config, name) == value, key  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_misspelt_key_is_refused(path: Path) -> None:
    settings = whole(path, int(path.stem[-1]))
    settings["zero_optimization"]["overlap_com"] = True
    with pytest.raises(Exception, match="overlap_com"):
        accepted(settings)


@pytest.mark.parametrize("given", [1, None])  # null would switch off what the run has set
@pytest.mark.parametrize("key", sorted(OURS))
def test_a_key_of_the_run_is_refused(key: str, given: int | None, tmp_path: Path) -> None:
    value: dict = {}
    inner = value
    *outer, last = key.split(".")
    for part in outer:
        inner = inner.setdefault(part, {})
    inner[last] = given
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=rf"{key} follows from the run's '{OURS[key]}'"):
        extra_settings(replace(recipes.get("tiny"), deepspeed=str(path)))
