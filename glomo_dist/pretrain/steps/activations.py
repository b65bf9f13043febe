"""Activation checkpointing: keep the inputs of a part, compute its inside again in the backward pass.

Chen et al., "Training deep nets with sublinear memory cost", 2016. The parts are the convolutions, each graph layer
and the decoder's GRU of both directions. The numbers stay the same: dropout draws the same masks the second time.
`decoder_loss` is no part: it keeps gradients, not activations, and would compute them twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.utils.checkpoint import checkpoint

from glomo_dist.model import Glomo


def checkpoint_activations(model: Glomo) -> None:
    """Make `model` do so from now on; names of parameters and outputs do not change.

    With norm batch the convolutions keep their activations: a second pass would count each batch twice.
    """
    for direction in (model.forwards, model.backwards):
        if model.config.norm != "batch":
            direction.graph_predictor.forward = _again(direction.graph_predictor.forward)  # type: ignore
        direction.feature_predictor.step = _again(direction.feature_predictor.step)  # type: ignore
        direction.decoder.read = _again(direction.decoder.read)  # type: ignore


def _again(part: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(part)
    def run(*arguments: Any) -> Any:
        # ZeRO-3 frees a parameter after its use: the second pass sees it whole where the first kept it empty
        return checkpoint(part, *arguments, use_reentrant=False, determinism_check="none")

    return run
