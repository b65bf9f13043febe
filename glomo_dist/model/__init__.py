"""The GLoMo model (paper sections 2.1-2.2): graph predictor, feature predictor, decoder.

Nothing here knows of ranks, optimizers or where data comes from. Names are imported when they are used: what a model
is (config.py) is known without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.model.config import GlomoConfig
    from glomo_dist.model.glomo import Glomo, LossTerms
    from glomo_dist.model.io import load_model, random_model, save_model

__all__ = ["Glomo", "GlomoConfig", "LossTerms", "load_model", "random_model", "save_model"]

__getattr__ = lazy.names(
    __name__,
    {
        "config": ("GlomoConfig",),
        "glomo": ("Glomo", "LossTerms"),
        "io": ("load_model", "random_model", "save_model"),
    },
)
