"""What one training run on a task is made of: the fields of a job and what is wrong with them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Literal

from glomo_dist.runtime.config import MOST_THREADS, check_fields, check_least, check_positive
from glomo_dist.runtime.devices import Device
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.paths import output
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.readers.kinds import Cell, FusionKind


def window_size(arm: str) -> int | None:
    """N of an arm "windowN", None of any other."""
    window = re.fullmatch(r"window([1-9]\d*)", arm)
    return int(window[1]) if window else None


def needs_graphs(arm: str) -> bool:
    """Whether an arm of this name stands for graphs of a predictor: none, uniform and windowN do not."""
    return arm not in ("none", "uniform") and window_size(arm) is None


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a task model is trained: what does not follow from the plan of an evaluation.

    Attributes:
        keep: Largest edges kept per row where graphs are computed in the job (None: all).
        state_cache: Folder for the states of an encoder (None: glomo/states in the user's cache folder).
        max_examples: Examples per split at most, the same for all seeds and arms (None: all).
        max_units: Units per example at most (None: the task's own limit).
        epochs: Passes over the training examples at most.
        patience: Epochs without a better dev metric before stopping.
        batch_size: Training examples per step.
        lr: Learning rate of AdamW.
        schedule: Of the learning rate, constant or falling linearly to 0 at the end of the last epoch; the fall takes
            much of the chance out of a result, and wants a patience as long as the epochs.
        mixture_lr_factor: The learning rate of the mixture, weights and scales, in multiples of lr: at the rate of
            the reader they hardly leave the equal weights that they start from.
        mixture_scale: What multiplies each mixed graph at the start, before it is learned. From 0 the reader starts
            as that of the arm none and takes in of the graph what helps.
        weight_decay: How strongly AdamW draws the weights to 0.
        clip: Largest global gradient norm (inf: no clipping).
        hidden: Width of the task model's layers, of each direction of a recurrent one.
        reader: Of texts: gru or lstm (both read in two directions), or bag, which sees each unit by itself: all that
            it knows of a unit's context comes through the graph.
        fusion: How the features H and what the graphs mix, M H, come together: [H ; M H], or [H ; gate] with gate =
            linear * sigmoid(linear) of all of them.
        mixtures: Mixed graphs per direction, each with its own weights and scale.
        conditioned: Whether the weights of a mixed graph depend on the unit's own features, instead of being the same
            for the whole task.
        dropout: Share of the fused features, and of what the classifier reads, that is set to 0 in training.
    """

    keep: int | None = 8
    state_cache: str | None = None
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
    fusion: FusionKind = "concat"
    mixtures: int = 1
    conditioned: bool = False
    dropout: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self, "job: ")
        check_least(self, "job: ", 1, "epochs", "patience", "batch_size", "hidden", "mixtures")
        check_least(self, "job: ", 1, "max_examples", "max_units", "keep")
        check_positive(self, "job: ", "lr", "mixture_lr_factor")
        if not self.clip > 0:  # infinity: gradients stay as they are
            raise ConfigError(f"job: clip must be positive, got {self.clip}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"job: weight_decay must be finite and at least 0, got {self.weight_decay}.")
        if not math.isfinite(self.mixture_scale):
            raise ConfigError(f"job: mixture_scale must be finite, got {self.mixture_scale}.")
        if self.state_cache is not None:
            output(self.state_cache, "job: state_cache")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"job: dropout must be in [0, 1), got {self.dropout}.")


@dataclass(frozen=True)
class FinetuneJob(FinetuneSettings):
    """One training run: the settings, and what the plan of an evaluation decides.

    task_source: file, folder or URL of the data.
    task_file: the .py file with the task (None: the package has it). It is run.
    arm: "none" (zeros for M H), "uniform" (the uniform graph), "windowN" (equal weights on the N nearest units before
        and after), or any other name for the graphs in `graphs`.
    graphs: path of the graph store, or of a model's folder, whose graphs are then computed in the job (the same
        numbers, see graphs/live.py); may be given for the arms without too, where it only sizes the mixture, so
        that all arms have the same parameters.
    features: "pixels", "learned", "learned:WIDTH", a file or URL of word vectors, "hf:ENCODER[@LAYER[,first]]", and
        "trnn:" before one of these for the states of a recurrent layer over them.
    train_size: training examples, drawn by `seed` (None: all).
    device: where the task model and live graphs compute, and an encoder its states.
    threads: CPU threads; part of what makes a result repeatable.
    """

    task: str
    arm: str = "none"
    task_source: str | None = None
    graphs: str | None = None
    features: str = "learned"
    seed: int = 0
    train_size: int | None = None
    device: Device = "cpu"
    threads: int = 1
    task_file: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task.endswith(".py"):
            raise ConfigError(
                f"job: task {self.task!r} is the path of a file; task must be the name in its TASK, "
                "and task_file the path."
            )
        check_least(self, "job: ", 1, "train_size")
        check_least(self, "job: ", 1, "threads", most=MOST_THREADS)
        FeatureSpec.parse(self.features)
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
                f"job: train_size {self.train_size}, but task {self.task!r} has {available} training examples. "
                "Ask for no more than these."
            )


# The names of a job's fields that are settings, and of those that follow from the plan of an evaluation.
SETTINGS = tuple(f.name for f in fields(FinetuneSettings))
PLANNED = tuple(f.name for f in fields(FinetuneJob) if f.name not in SETTINGS)
