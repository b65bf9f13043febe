"""What the results of an evaluation say besides their scores, for who started it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from glomo_dist.evaluate.attempt import RESULT, Job, job_folder
from glomo_dist.evaluate.task_data import Read
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.transfer.datasets.dataset import left_out
from glomo_dist.transfer.features.coverage import MANY, percent
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.result import Result


def notes(out: str | Path, jobs: Sequence[Job], read: Read) -> list[str]:
    """Lines to say after `evaluate`; each once, however many of the jobs it is true of.  read: as given to it."""
    return list(dict.fromkeys(line for result in _results(out, jobs, read) for line in _lines(result)))


def _results(out: str | Path, jobs: Sequence[Job], read: Read) -> Iterator[Result]:
    for job in jobs:
        try:
            yield read(job_folder(Path(out).absolute(), job.id) / RESULT)
        except GlomoError:  # it failed, which is said elsewhere
            continue


def _lines(result: Result) -> Iterator[str]:
    if result.skipped:
        yield f"evaluate: task {result.task!r}: {left_out(result.skipped)}"
    words = f"of the words of task {result.task!r}"
    if result.without_vector is not None and result.without_vector.words > MANY:
        source = FeatureSpec.parse(result.job["features"]).source
        yield (
            f"WARNING: evaluate: {percent(result.without_vector.words)} {words} have no vector in {source} and are "
            "zeros to the model. Is it of another language, or of other spellings?"
        )
    if result.unknown_to_predictor is not None and result.unknown_to_predictor > MANY:
        yield (
            f"WARNING: evaluate: {percent(result.unknown_to_predictor)} {words} are not in the vocabulary of the "
            f"predictor of arm {result.arm!r}."
        )
