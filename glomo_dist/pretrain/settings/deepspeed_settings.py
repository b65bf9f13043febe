"""What DeepSpeed is told: what follows from a run's configuration, and what a file of the user adds."""

from __future__ import annotations

import math
from typing import Any

from glomo_dist.pretrain.settings.config import PretrainConfig, accumulation
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import ConfigError

# DeepSpeed settings that follow from PretrainConfig: giving them twice could only contradict.
OURS = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "micro_batch",
    "gradient_clipping": "clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "precision",
    "fp16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "zero_optimization.stage": "zero_stage",
}
DEEPSPEEDS_BUCKET = 500_000_000


def extra_settings(config: PretrainConfig) -> dict[str, Any]:
    """The content of the file `config.deepspeed`; ConfigError where it says what PretrainConfig does, or has a
    bucket of no size, on which DeepSpeed would fail otherwise than by a refusal."""
    if config.deepspeed is None:
        return {}
    extra = json_files.read_json(config.deepspeed)
    if not isinstance(extra, dict) or not isinstance(extra.get("zero_optimization", {}), dict):
        raise ConfigError(
            f"{config.deepspeed}: expected a JSON object of DeepSpeed settings, zero_optimization an object too."
        )
    for key, ours in OURS.items():
        section, _, name = key.rpartition(".")
        if name in (extra.get(section, {}) if section else extra):  # null too would take the place of ours
            raise ConfigError(
                f"{config.deepspeed}: {key} follows from the run's {ours!r}. Remove it from the file."
            )
    size = extra.get("zero_optimization", {}).get("reduce_bucket_size", 0)
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < math.inf:
        raise ConfigError(
            f"{config.deepspeed}: reduce_bucket_size must be a number of at least 0, got {size!r}. Mend or remove it."
        )
    return extra


def bucket(config: PretrainConfig, parameters: int) -> float:
    """Numbers of the buffer in which a rank collects gradients, from ZeRO 1 on. DeepSpeed's own default has them for
    models of any size: 2 GB in float32."""
    zero = extra_settings(config).get("zero_optimization", {})
    size: float = zero.get("reduce_bucket_size", min(DEEPSPEEDS_BUCKET, parameters))
    return size


def deepspeed_settings(config: PretrainConfig, parameters: int, ranks: int) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` gets for a model of so many parameters."""
    micro, passes = accumulation(config, ranks)
    extra = extra_settings(config)
    zero = {
        "stage": config.zero_stage,
        "reduce_bucket_size": bucket(config, parameters),
        **extra.pop("zero_optimization", {}),
    }
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": passes,
        # without ZeRO `optimizer_step` clips: DeepSpeed's own fails on a step that was vetoed
        "gradient_clipping": config.clip if config.clip and config.zero_stage else 0.0,
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": zero,
        # torch's own, also with offloading: DeepSpeed's would compile for minutes
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        **extra,
    }
