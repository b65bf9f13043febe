"""What one fine-tuning job found, as a type, and its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glomo_dist.runtime import config, json_files
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.formats import check_format
from glomo_dist.transfer.features.coverage import Unknown

FORMAT, VERSION = "glomo-result", 2
_OF_A_JOB = {
    "task": str,
    "arm": str,
    "features": str,
    "seed": int,
    "train_size": int | None,
    "graphs": str | None,
    "task_source": str | None,
    "max_examples": int | None,
}


def wrong_field(job: Mapping[str, Any]) -> str | None:
    """What is missing or of another type among the fields of a job that a report reads; None if nothing is."""
    for name, types in _OF_A_JOB.items():
        if name not in job:
            return f"the job has no {name}"
        if not isinstance(job[name], types):
            return f"{name} of the job is {job[name]!r:.80}"
    return None


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean training cross-entropy (nats), the dev metric after it, seconds since the job began."""

    epoch: int
    train_loss: float
    dev: float
    seconds: float


@dataclass(frozen=True)
class MixedGraph:
    """One mixed graph at the best epoch: its scale and the weight of each component (their sum is 1).

    For a conditioned mixture, the mean weights over the units of the test split.
    """

    direction: str
    scale: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """Result of `finetune.run(job)`. Metrics are shares in [0, 1]; `test` is taken at the best dev epoch.

    metric: the name of the one in `test` and `dev`.  metrics: all of the test split, by name.
    job: the fields of the job.  examples: per split, as used.  skipped: rows of the source that were left out,
        counted by reason.  majority: share of the most frequent test class, None
        where the answers are no classes, or measured by another metric than accuracy.
    components: names in the order of `MixedGraph.weights` ("G1.0": layer 1, head 0, counted from 0; "P1.0":
        its product with the layers below); empty for arms without graphs.
    fingerprints: of the task data ("data"), the file of a task of one's own ("task_file"), the word vectors
        ("features"), the graphs' index ("graphs"), and the predictor behind them ("model"); None where there is none.
    without_vector: the task's words without one, where the features are word vectors.
    unknown_to_predictor: `StoreInfo.unknown_words` of the graphs.
    """

    format: str
    version: int
    job: dict[str, Any]
    task: str
    task_version: int
    arm: str
    seed: int
    metric: str
    test: float
    metrics: dict[str, float]
    dev: float
    best_epoch: int
    curve: tuple[Epoch, ...]
    seconds: float
    majority: float | None
    classes: tuple[str, ...]
    examples: dict[str, int]
    skipped: dict[str, int]
    parameters: int
    components: tuple[str, ...]
    mixtures: tuple[MixedGraph, ...]
    fingerprints: dict[str, str | None]
    code: str
    without_vector: Unknown | None
    unknown_to_predictor: float | None

    def require_of(self, job: Mapping[str, Any], path: Path) -> None:
        """DataError, which names `path`, if this is the result of another job than that of these fields."""
        names = ("task", "arm", "seed", "train_size")
        ours, theirs = ({name: fields.get(name) for name in names} for fields in (self.job, job))
        if ours != theirs:
            raise DataError(
                f"{path}: is the result of another job ({ours}, not {theirs}). Put it back where it was, or "
                "delete it and run `glomo evaluate` again."
            )

    def write(self, path: str | Path) -> None:
        """As JSON; the file is there when it is whole."""
        json_files.write_json(path, config.to_dict(self))

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """The result at `path`.

        Raises DataError if it is missing, no result, of another version or with values that none can have,
        ConfigError for wrong keys.
        """
        again = "Run the same `glomo evaluate` again, which puts the file aside and makes it anew."
        try:
            content = json_files.read_json(path)
        except DataError as e:
            raise DataError(f"{e} {again}") from None
        values = check_format(content, FORMAT, VERSION, path, "a result file", again=again)
        result = config.from_dict(cls, values, str(path))
        if wrong := result._wrong():
            raise DataError(f"{path}: {wrong}. The file is damaged. {again}")
        return result

    def _wrong(self) -> str | None:
        """What of that which is averaged and drawn no result can have; None if nothing."""
        shares: dict[str, list[float | None]] = {
            "test": [self.test],
            "metrics": list(self.metrics.values()),
            "dev": [epoch.dev for epoch in self.curve],
            "a mixture's weight": [weight for mixed in self.mixtures for weight in mixed.weights],
            "majority": [self.majority],
            "without_vector": [] if self.without_vector is None else list(vars(self.without_vector).values()),
            "unknown_to_predictor": [self.unknown_to_predictor],
        }
        if wrong := wrong_field(self.job):
            return wrong
        for name, values in shares.items():
            for value in values:
                if value is not None and not 0 <= value <= 1:
                    return f"{name} must be a share in [0, 1], got {value}"
        if any(len(mixed.weights) != len(self.components) for mixed in self.mixtures):
            return "a mixture has other components than the result"
        if not math.isfinite(self.seconds):
            return f"seconds must be finite, got {self.seconds}"
        return None
