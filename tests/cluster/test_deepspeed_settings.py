"""cluster/deepspeed: DeepSpeed takes every file, and what the run sets itself is not in them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_samples import CLUSTER

from glomo_dist import recipes
from glomo_dist.pretrain.settings.deepspeed_settings import (
    OURS,
    deepspeed_settings,
    extra_settings,
    unknown_key,
)
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"zero_optimisation": {}},
            "'zero_optimisation' and passes over it. Did you mean 'zero_optimization'",
        ),
        (
            {"zero_optimization": {}, "comms_loger": {}},
            "the key 'comms_loger' .* Did you mean 'comms_logger'?",
        ),
        ({"_": "faster"}, r"the key '_' and passes over it\.$"),
        ({"bfloat16": {"enabled": True}}, "the key 'bfloat16'"),  # its old name of bf16, which the run gives
    ],
)
def test_a_key_that_deepspeed_passes_over_is_named(content: dict, said: str, tmp_path: Path) -> None:
    found = unknown(content, tmp_path)
    assert found is not None and re.search(said, found) and f"{tmp_path}/deepspeed.json: DeepSpeed" in found


SECTIONS = """activation_checkpointing aio checkpoint comet comms_logger compile csv_monitor data_efficiency
    data_types flops_profiler hybrid_engine pipeline tensor_parallel tensorboard timers wandb weight_quantization
    zero_optimization"""
VALUES: dict = {
    "communication_data_type": "fp32", "data_parallel_size": 1, "dataloader_drop_last": True,
    "disable_allgather": True, "dump_state": False, "gradient_predivide_factor": 1.0, "memory_breakdown": True,
    "prescale_gradients": True, "seq_parallel_communication_data_type": "fp32", "sequence_parallel_size": 1,
    "steps_per_print": 10, "use_data_before_expert_parallelism": False, "vocabulary_size": 64,
    "wall_clock_breakdown": True, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
}  # fmt: skip


def test_the_keys_of_deepspeed_are_known(tmp_path: Path) -> None:
    known = {section: {} for section in SECTIONS.split()} | VALUES
    assert unknown(known, tmp_path) is None
    assert "'no_such_key'" in str(unknown({**known, "no_such_key": 1}, tmp_path))


def test_what_deepspeed_refuses_is_left_to_it(tmp_path: Path) -> None:
    assert unknown({"zero_optimization": {"overlap_com": True}, "zero_optimisation": {}}, tmp_path) is None


def unknown(content: dict, folder: Path) -> str | None:
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(content))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return unknown_key(replace(recipes.get("tiny"), deepspeed=str(path)), 1)


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
