"""What one pretraining run is: model, data order, optimizer, precision, how often to save."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from glomo_dist.data import Reading, Windows
from glomo_dist.model import GlomoConfig
from glomo_dist.pretrain.settings.idle import refuse_idle
from glomo_dist.runtime.config import LARGEST, MOST, check_fields, check_least, check_positive
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.words import counted

LONGEST_WAIT = 1e6  # seconds, eleven days; torch has no endless timeouts
# Settings that change neither the order of samples nor, but for rounding, the weights: a run may be continued with
# other values. (micro_batch changes them with batch statistics, dropout and model.scale_grad_by_freq, which counts a
# unit per micro-batch, as the number of ranks does.)
FREE_TO_CHANGE = (
    "activation_checkpointing",
    "checkpoint_every",
    "keep_checkpoints",
    "micro_batch",
    "log_every",
    "max_bad_steps",
    "hang_timeout",
    "trackers",
    *(f"reading.{f.name}" for f in fields(Reading)),
)


@dataclass(frozen=True)
class PretrainConfig:
    """One run. Two runs with equal configurations, data and number of ranks give the same weights.

    Attributes:
        model: What is trained; vocab_size 0 and an image that is None are taken from the shards.
        seed: Of the initial weights, the order of samples, the sampled positions and dropout.
        window: Units of a training sequence at most (a longer document gives several).
        windows: How documents are cut into sequences: fixed (end to end), random (lengths and places drawn anew in
            each epoch, as the paper's authors do) or packed (fixed, and short documents share a row without seeing
            each other; positions_per_sequence is then per row).
        reading: How shards are fetched, cached and read ahead.
        global_batch: Sequences per optimizer step over all ranks.
        micro_batch: Sequences per rank and backward pass (None: the rank's whole share); smaller ones are accumulated
            and give the same step, but for what sees one micro-batch at a time: model.norm batch,
            model.scale_grad_by_freq and dropout.
        steps: Optimizer steps.
        positions_per_sequence: Units per sequence and direction whose context is predicted (paper code: 20), drawn
            from the first max(length - model.decoder_steps, 1) of each document.
        optimizer: adamw (with betas) or sgd (with momentum; the authors' run: lr 8, momentum 0.2, clip 0.25, schedule
            plateau).
        lr: Peak learning rate.
        graph_lr_share: The graph predictors' learning rate relative to lr. A row of the graph with no positive score
            has no gradient: with the full rate of AdamW thresholds overshoot and all rows die within 50 steps.
        betas: For optimizer adamw: two numbers, how much of the running means of gradients and of their squares stays
            in a step.
        momentum: For optimizer sgd: how much of the last step goes into the next.
        weight_decay: How strongly weights are drawn to 0, for adamw decoupled; biases, norms and other vectors are
            spared.
        clip: Largest global gradient norm (None: no clipping).
        schedule: Of the learning rate after the warm-up: cosine (falls to final_lr_share at the last step), constant,
            or plateau (is divided each time the validations stop getting better; the run ends below 1 % of lr).
        warmup_steps: Steps in which the learning rate rises to lr, in equal parts.
        final_lr_share: For schedule cosine: the learning rate of the last step relative to lr.
        plateau_patience: For schedule plateau: validations in a row, none better than the best, before the learning
            rate is divided.
        plateau_divisor: For schedule plateau: what the learning rate is divided by.
        valid_every: Steps between validations (0: none; else validation shards are needed).
        valid_batches: Global batches of a validation, the same ones each time.
        zero_stage: 0 replicates everything, 1 shares out optimizer states, 2 gradients too, 3 parameters too.
        precision: fp32, or bf16 with fp32 master weights (zero_stage 1 or more).
        activation_checkpointing: Keep only the inputs of graph layers, convolutions and decoder during the forward
            pass and compute the rest again in the backward pass: less memory, more time, the same numbers.
        deepspeed: Path of a JSON file with further DeepSpeed settings, e.g. bucket sizes or offloading.
        checkpoint_every: Steps between checkpoints (the last step always is one).
        keep_checkpoints: Newest checkpoints that stay; older ones are deleted.
        log_every: Steps between rows of log.jsonl and graph statistics.
        max_bad_steps: Steps in a row with a non-finite loss or gradient (they are skipped) before giving up.
        hang_timeout: Seconds without progress after which the watchdog shows every rank's stacks and ends the
            run (until the first step is done, which may compile, at least 15 minutes).
        trackers: Where the run can be watched besides log.jsonl.
    """

    model: GlomoConfig = field(default_factory=GlomoConfig)
    seed: int = 0
    window: int = 128
    windows: Windows = "fixed"
    reading: Reading = field(default_factory=Reading)
    global_batch: int = 32
    micro_batch: int | None = None
    steps: int = 1000
    positions_per_sequence: int = 20
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    graph_lr_share: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = 1.0
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    warmup_steps: int = 0
    final_lr_share: float = 0.1
    plateau_patience: int = 3
    plateau_divisor: float = 2.0
    valid_every: int = 0
    valid_batches: int = 8
    zero_stage: int = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
    deepspeed: str | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 1
    max_bad_steps: int = 10
    hang_timeout: float = 600.0
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        check_fields(self, "")
        check_least(self, "", 2, "window", most=MOST)
        check_least(
            self, "", 1, "global_batch", "micro_batch", "steps", "positions_per_sequence", "plateau_patience",
            "valid_batches", "checkpoint_every", "keep_checkpoints", "log_every", "max_bad_steps", most=MOST,
        )  # fmt: skip
        check_least(self, "", 0, "warmup_steps", "valid_every", most=MOST)
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be in 0..2^64 - 1, got {self.seed}.")
        check_positive(self, "", "lr")
        if not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        check_positive(self, "", "hang_timeout", most=LONGEST_WAIT)
        check_positive(self, "", "graph_lr_share")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1), got {self.momentum}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay must not be negative, and finite, got {self.weight_decay}.")
        if self.lr * max(self.graph_lr_share, 1) * max(self.weight_decay, 1) > LARGEST:
            raise ConfigError(
                f"lr {self.lr:g} with graph_lr_share {self.graph_lr_share:g} and weight_decay "
                f"{self.weight_decay:g} is more than a weight can hold. Lower them."
            )
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be positive or None (no clipping), got {self.clip}.")
        if not 0 <= self.final_lr_share <= 1:
            raise ConfigError(f"final_lr_share must be in [0, 1], got {self.final_lr_share}.")
        if not 1 < self.plateau_divisor < math.inf:
            raise ConfigError(
                f"plateau_divisor must be greater than 1 and finite, got {self.plateau_divisor}."
            )
        if self.warmup_steps > self.steps:
            raise ConfigError(
                f"warmup_steps {self.warmup_steps} is more than steps {self.steps}. Shorten the warm-up."
            )
        if self.schedule == "plateau" and not self.valid_every:
            raise ConfigError(
                "schedule plateau follows the validation loss: set valid_every and give validation shards."
            )
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}.")
        if self.precision == "bf16" and self.zero_stage == 0:
            # DeepSpeed uses another optimizer wrapper there, with other results
            raise ConfigError("precision bf16 needs zero_stage 1 or more. Set zero_stage 1, 2 or 3.")
        refuse_idle(self)
        if self.model.image is not None and self.windows != "fixed":
            raise ConfigError(
                f"windows {self.windows} would cut or join images, each is one sequence. Set fixed."
            )
        if self.model.image is not None and self.window < self.model.image[0] * self.model.image[1]:
            height, width = self.model.image
            raise ConfigError(
                f"window {self.window} would cut images of {height} x {width} pixels. Set window {height * width}."
            )
        ahead = self.model.decoder_steps
        if self.row_units < ahead + 3:  # the third unit is the first with a choice of edges
            of, instead = "window", f"Set window {ahead + 3} or more"
            if self.model.image is not None:
                of, instead = "model.image", "Prepare larger images"
            raise ConfigError(
                f"model.decoder_steps {ahead} of {self.row_units} units ({of}) leave no unit to predict from that "
                f"has two before it: no graph would be trained. {instead}, or set fewer steps."
            )

    @property
    def row_units(self) -> int:
        """Units of a sequence at most: an image has its pixels, however long the window is."""
        image = self.model.image
        return self.window if image is None else image[0] * image[1]


def accumulation(config: PretrainConfig, ranks: int) -> tuple[int, int]:
    """(sequences per rank and backward pass, such passes per step); ConfigError if that is uneven."""
    if config.global_batch % ranks:
        raise ConfigError(
            f"global_batch {config.global_batch} is not a multiple of the number of ranks {ranks}: every "
            "rank takes an equal share. Change one of them."
        )
    share = config.global_batch // ranks
    micro = config.micro_batch or share
    if share % micro:
        raise ConfigError(
            f"micro_batch {micro} does not divide a rank's share of {counted(share, 'sequence')} "
            f"(global_batch {config.global_batch} / {counted(ranks, 'rank')}). Choose a divisor of {share}."
        )
    return micro, share // micro
