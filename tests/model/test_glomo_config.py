"""Sizes and choices of a model that cannot work are refused, with what is wrong."""

from __future__ import annotations

import math

import pytest

from glomo_dist.model import GlomoConfig
from glomo_dist.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sparsity": "relu", "edge_floor": 1}, "edge_floor 1 is for sparsity threshold or bias, got 'relu'"),
        ({"sparsity": "softmax", "threshold_init": 1.0}, "threshold_init 1.0 is for sparsity"),
        ({"width": 1, "heads": 1}, "width 1 .* queries and keys .* Set width 2 or more, or head_width"),
        ({"edge_floor": -1}, "must not be negative"),
        ({"empty_row_penalty": -1.0}, "must not be negative"),
        ({"sparsity": "square", "empty_row_penalty": 1.0}, "no row is empty"),
        ({"threshold_init": -1e300}, r"must be a finite number, got -1e\+300"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"image": (0, 5)}, r"image must be \(height, width\) in pixels, got \(0, 5\)"),
        *(
            ({name: 0}, f"model.{name} must be at least 1")
            for name in ("heads", "head_width", "layers", "decoder_layers", "decoder_steps", "kernel_size")
        ),
        *(
            ({name: -1}, f"model.{name} must be at least 0")
            for name in ("key_layers", "query_layers", "vocab_size")
        ),
        ({"threshold_init": 1e300}, r"must be a finite number, got 1e\+300; 1e\+38 at most"),
        ({"empty_row_penalty": math.nan}, "must not be negative, and finite, got 0 and nan"),
        ({"threshold_init": math.nan}, "threshold_init must be a finite number, got nan"),
        ({"sparsity": "topk", "topk_rate": math.nan}, "topk_rate must be positive and finite, got nan"),
        ({"sparsity": "topk", "empty_row_penalty": 1.0}, "no row is empty"),
    ],
)
def test_options_that_cannot_work_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        GlomoConfig(**changes)  # type: ignore[arg-type]
