"""Small GLoMo models of every kind, and what they read."""

from dataclasses import replace

import torch
from torch import Tensor

from glomo_dist.model import Glomo, GlomoConfig

KINDS = ("threshold", "bias", "relu", "square", "topk", "softmax")
TEXT = GlomoConfig(vocab_size=23, width=16, heads=4, layers=2, sparsity="threshold")
IMAGE = GlomoConfig(vocab_size=16, width=16, heads=2, layers=2, image=(4, 5))
VARIANTS = (
    {"coupled": True},
    {"coupled": True, "key_layers": 0, "query_layers": 0, "composition": "lstm", "sparsity": "relu"},
    {"coupled": True, "sparsity": "topk", "composition": "residual"},
    {"score": "scaled", "threshold_init": 0.1},
    {"score": "cosine", "empty_row_penalty": 2.0},
    {"edge_floor": 2, "threshold_init": 0.5},
    {"edge_floor": 20, "threshold_init": 0.5, "coupled": True, "sparsity": "bias"},
    {"layers": 1, "decoder_steps": 1, "sparsity": "relu", "empty_row_penalty": 0.5},
)


def build(config: GlomoConfig = TEXT, seed: int = 0, **changes: object) -> Glomo:
    torch.manual_seed(seed)
    return Glomo(replace(config, **changes)).double()  # type: ignore[arg-type]


def tokens(B: int, T: int, vocabulary: int = 16) -> Tensor:
    return torch.randint(0, vocabulary, (B, T), generator=torch.Generator().manual_seed(1))
