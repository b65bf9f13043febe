"""What one training run on a task is made of: the fields of a job and what is wrong with them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from glomo_dist.runtime.config import check_fields, check_least
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.features import FeatureSpec
from glomo_dist.transfer.models import Cell

# The fields of a job that a plan decides; all others are settings.
PLANNED = ("task", "task_file", "arm", "graphs", "features", "seed", "train_size", "task_source", "threads")


def window_size(arm: str) -> int | None:
    """N of an arm "windowN", None of any other."""
    window = re.fullmatch(r"window([1-9]\d*)", arm)
    return int(window[1]) if window else None


def needs_graphs(arm: str) -> bool:
    """Whether an arm of this name stands for graphs of a predictor: none, uniform and windowN do not."""
    return arm not in ("none", "uniform") and window_size(arm) is None


@dataclass(frozen=True)
class FinetuneJob:
    """One training run.

    task_file: the .py file with the task (None: the package has it). It is run.
    arm: "none" (zeros for M H), "uniform" (the uniform graph), "windowN" (equal weights on the N nearest units before
        and after), or any other name for the graphs in `graphs`.
    graphs: path of the graph store, or of a model's folder, whose graphs are then computed in the job (the same
        numbers, see graphs/live.py); may be given for the arms without too, where it only sizes the mixture, so
        that all arms have the same parameters.
    keep: largest edges kept per row where graphs are computed in the job (None: all).
    features: "pixels", "learned", "learned:WIDTH", a file or URL of word vectors, "hf:ENCODER[@LAYER[,first]]", and
        "trnn:" before one of these for the states of a recurrent layer over them.
    state_cache: folder for the states of an encoder (None: glomo/states in the user's cache folder).
    train_size: training examples, drawn by `seed` (None: all).  max_examples: cap of every split, the same
        for all seeds and arms.  max_units: units per example (None: the task's own).
    schedule: of the learning rate, constant or falling linearly to 0 at the end of the last epoch; the fall takes
        much of the chance out of a result, and wants a patience as long as the epochs.
    mixture_lr_factor: the learning rate of the mixture, weights and scales, in multiples of `lr`: at the rate of the
        reader they hardly leave the equal weights that they start from.
    mixture_scale: what multiplies each mixed graph at the start, before it is learned. From 0 the reader starts as
        that of "none" and takes in of the graph what helps.
    patience: epochs without a better dev metric before stopping.  threads: CPU threads; part of what makes a
        result repeatable.
    """

    task: str
    arm: str = "none"
    task_source: str | None = None
    graphs: str | None = None
    keep: int | None = 8
    features: str = "learned"
    state_cache: str | None = None
    seed: int = 0
    train_size: int | None = None
    max_examples: int | None = None
    max_units: int | None = None
    epochs: int = 5
    patience: int = 2
    batch_size: int = 32
    lr: float = 1e-3
    schedule: Literal["constant", "linear"] = "constant"
    mixture_lr_factor: float = 10.0
    mixture_scale: float = 1.0
    weight_decay: float = 0.0
    clip: float = 5.0
    hidden: int = 64
    reader: Cell = "gru"
    fusion: Literal["concat", "gate"] = "concat"
    mixtures: int = 1
    conditioned: bool = False
    dropout: float = 0.3
    threads: int = 1
    task_file: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "job: ")
        check_least(self, "job: ", 1, "epochs", "patience", "batch_size", "hidden", "mixtures", "threads")
        FeatureSpec.parse(self.features)
        check_least(self, "job: ", 1, "train_size", "max_examples", "max_units", "keep")
        for name in ("lr", "mixture_lr_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"job: {name} must be positive and finite, got {getattr(self, name)}.")
        if not self.clip > 0:  # infinity: gradients stay as they are
            raise ConfigError(f"job: clip must be positive, got {self.clip}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"job: weight_decay must be finite and at least 0, got {self.weight_decay}.")
        if not math.isfinite(self.mixture_scale):
            raise ConfigError(f"job: mixture_scale must be finite, got {self.mixture_scale}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"job: dropout must be in [0, 1), got {self.dropout}.")
        if self.needs_graphs and self.graphs is None:
            raise ConfigError(
                f"job: arm {self.arm!r} needs graphs, the path of a graph store (`glomo export`). The arms "
                "without are none, uniform and window1, window2, ..."
            )

    @property
    def needs_graphs(self) -> bool:
        return needs_graphs(self.arm)

    def require_examples(self, available: int) -> None:
        """ConfigError if the train split has less examples than `train_size`."""
        if self.train_size is not None and self.train_size > available:
            raise ConfigError(
                f"job: train_size {self.train_size}, but task {self.task!r} has {available} examples."
            )
