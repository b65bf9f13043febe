"""Pretraining: torchrun starts the ranks, DeepSpeed shares out optimizer, gradients and parameters.

`pretrain(config, data, out, ranks)` is the whole of it; see launch.py, then worker.py, loop.py, step.py. What starts
a run (config.py, run_folder.py, launch.py) does without PyTorch, which each rank loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.pretrain.config import PretrainConfig
    from glomo_dist.pretrain.launch import pretrain

__all__ = ["PretrainConfig", "pretrain"]

__getattr__ = lazy.names(__name__, {"config": ("PretrainConfig",), "launch": ("pretrain",)})
