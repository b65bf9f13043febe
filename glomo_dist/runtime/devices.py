"""Where a predictor or a task model computes: the processor, or a GPU."""

from __future__ import annotations

from typing import Literal

from glomo_dist.runtime.errors import ConfigError

Device = Literal["cpu", "cuda"]


def require_device(device: Device) -> None:
    """ConfigError where there is no such device."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "PyTorch finds none" if built else f"this PyTorch ({torch.__version__}) is built without CUDA"
        raise ConfigError(
            f"a GPU is asked for, and {why}. Without --device cuda and --job-gpus all is computed on the processor; "
            "`glomo doctor` says what is here."
        )
