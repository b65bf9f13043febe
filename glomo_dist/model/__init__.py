"""The GLoMo model (paper sections 2.1-2.2): graph predictor, feature predictor, decoder.

Nothing here knows of ranks, optimizers or where data comes from.
"""

from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.glomo import Glomo, LossTerms
from glomo_dist.model.io import load_model, random_model, save_model

__all__ = ["Glomo", "GlomoConfig", "LossTerms", "load_model", "random_model", "save_model"]
