"""What DeepSpeed is told: what follows from a run's configuration, and what a file of the user adds."""

from __future__ import annotations

import difflib
import math
from collections.abc import KeysView
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
_ASKED_LATER = {"sequence_parallel_size", "data_parallel_size"}  # by `deepspeed.initialize` itself


def extra_settings(config: PretrainConfig) -> dict[str, Any]:
    """The content of the file `config.deepspeed`; ConfigError where it says what PretrainConfig does, has what cannot
    be saved, or a bucket of no size, on which DeepSpeed would fail otherwise than by a refusal."""
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
    zero = extra.get("zero_optimization", {})
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(key), dict) and zero[key].get("device") == "nvme":
            raise ConfigError(
                f"{config.deepspeed}: {key} to nvme is refused: what lies there cannot be saved. Set the device cpu."
            )
    size = zero.get("reduce_bucket_size", 0)
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


class _Asked(dict[str, Any]):
    """Settings that remember the keys that they, or a copy of them, were asked for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """A view that asks these settings, not the dict below."""
        return KeysView(self)


def unknown_key(config: PretrainConfig, ranks: int) -> str | None:
    """What is wrong with the first key of the file `config.deepspeed` that DeepSpeed does not know, and passes over.

    It has no list of those that it knows: they are all that it asks for while it reads a configuration. Only where
    PyTorch may be imported.
    """
    if config.deepspeed is None:
        return None
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = _Asked(deepspeed_settings(config, 1, ranks))
    try:
        DeepSpeedConfig(settings)
    except Exception:  # what it refuses is said where it begins with it
        return None
    for key in extra_settings(config):
        if key not in settings.asked | _ASKED_LATER:
            near = difflib.get_close_matches(key, settings.asked, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            return f"{config.deepspeed}: DeepSpeed does not know the key {key!r} and passes over it.{hint}"
    return None
