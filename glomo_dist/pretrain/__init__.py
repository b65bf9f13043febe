"""Pretraining: torchrun starts the ranks, DeepSpeed shares out optimizer, gradients and parameters.

`pretrain(config, data, out, ranks)` is the whole of it: launch.py starts the ranks, worker.py is one of them, loop.py
goes from step to step.

settings/  what a run is to do: settings, fitted to the shards, and what follows from them
ranks/     its processes: their group, signals that ask them to stop, a watchdog beside each
output/    what comes out of it: the run folder, log and trackers, checkpoints
steps/     a step and what it is made of

What starts a run (settings/, output/run_folder.py, launch.py) does without PyTorch, which each rank loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.pretrain.launch import pretrain
    from glomo_dist.pretrain.settings.config import PretrainConfig

__all__ = ["PretrainConfig", "pretrain"]

__getattr__ = lazy.names(__name__, {"settings.config": ("PretrainConfig",), "launch": ("pretrain",)})
