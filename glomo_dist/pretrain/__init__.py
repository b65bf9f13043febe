"""Pretraining: torchrun starts the ranks, DeepSpeed shares out optimizer, gradients and parameters.

`pretrain(config, data, out, ranks)` is the whole of it; see launch.py, then worker.py, loop.py, step.py.
"""

from glomo_dist.pretrain.config import PretrainConfig
from glomo_dist.pretrain.launch import pretrain

__all__ = ["PretrainConfig", "pretrain"]
