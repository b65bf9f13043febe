"""A frozen predictor with the tokenizer that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glomo_dist.data.tokenizers.pixels import PixelTokenizer
from glomo_dist.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.io import CONFIG, load_model, random_model, read_meta
from glomo_dist.model.io import model_folder as find_model
from glomo_dist.pretrain.output.run_folder import CHECKPOINTS
from glomo_dist.runtime.errors import CheckpointError, ConfigError
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.transfer.datasets.dataset import Task


class Predictor:
    """A model and its tokenizer, from a model's folder or a finished run's.

    random_seed: not None for the *random predictor* baseline, of the same configuration with fresh parameters.
    task: whose units the model must have been trained on.
    Raises ConfigError for a seed that is none and for other units, CheckpointError if the two do not fit each other.
    """

    def __init__(self, folder: str | Path, random_seed: int | None = None, task: Task | None = None) -> None:
        require_seed(random_seed)
        folder = finished_model(folder) or folder
        self.folder, self.random_seed = folder, random_seed
        self.model, meta = load_model(folder)
        self.tokenizer = load_tokenizer(folder)
        if task is not None and self.tokenizer.kind != task.unit:
            raise ConfigError(
                f"task {task.name!r} has {task.unit} as units, the model in {folder} was trained on "
                f"{self.tokenizer.kind}. Use a model for {task.unit}."
            )
        if wrong := _strange(self.tokenizer, self.model.config, meta):
            raise CheckpointError(
                f"{folder}: tokenizer.json {wrong}. Put back the tokenizer it was trained with."
            )
        self.fingerprint = str(meta["fingerprint"])
        if random_seed is not None:
            self.model = random_model(folder, random_seed)
            self.fingerprint = fingerprint(["random predictor", meta["model"], random_seed])

    def require_size(self, images: Iterable[np.ndarray[Any, Any]]) -> None:
        """ConfigError unless all images have the size of those that the model, one for pixels, was trained on."""
        assert isinstance(self.tokenizer, PixelTokenizer)
        size = (*self.tokenizer.shape, self.tokenizer.channels)
        for image in images:
            got = image.shape if image.ndim == 3 else (*image.shape, 1)
            if got != size:
                raise ConfigError(
                    f"the model was pretrained on {_by(size)} images (height x width x channels), the task's are "
                    f"{_by(got)}. Pretrain on such images (glomo prepare images --size {got[0]} {got[1]} --channels "
                    f"{got[2]})."
                )


def finished_model(path: str | Path) -> Path | None:
    """The model at `path`, its folder or a run's; None if there is none.

    CheckpointError for a run that has none yet, and for a folder that has only a part of one.
    """
    if found := find_model(path):
        return found
    if Path(path, CHECKPOINTS).is_dir():
        raise CheckpointError(
            f"{path} is not finished: it has no model yet. Run `glomo pretrain` again to its end, or give one "
            f"of its checkpoints, {path}/{CHECKPOINTS}/step-N."
        )
    if Path(path, CONFIG).is_file():
        read_meta(path)
    return None


def require_seed(random_seed: int | None, where: str = "") -> None:
    """ConfigError, which begins with `where`, for a number that torch takes for no seed."""
    if random_seed is not None and not -(2**63) <= random_seed < 2**64:
        raise ConfigError(f"{where}random_seed must be from -2**63 to 2**64 - 1, got {random_seed}.")


def _strange(tokenizer: Tokenizer, config: GlomoConfig, meta: Mapping[str, Any]) -> str | None:
    """What tells that the model was trained with another tokenizer; None if nothing does."""
    if tokenizer.vocab_size != config.vocab_size:
        return f"has {tokenizer.vocab_size} units, the model was trained with {config.vocab_size}"
    if meta.get("tokenizer") not in (None, tokenizer.fingerprint):
        return "has as many units as the model's, but is another"
    if isinstance(tokenizer, PixelTokenizer) and config.image not in (None, tokenizer.shape):
        return f"is of {_by(tokenizer.shape)} images, the model of {_by(config.image)} (height x width)"
    return None


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
