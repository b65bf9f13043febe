"""Results grouped into what may be compared: by task, features, training size and settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from glomo_dist.report.names import one_line
from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.sources import address_parts
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.job import PLANNED, FinetuneJob
from glomo_dist.transfer.result import Result

# What may differ between the rows of one table: the arm and its graphs, the seed, and where files lie. Not the
# device: on a GPU dropout has other random numbers.
_NOT_A_SETTING = {*PLANNED, "state_cache"} - {"device"}
_TASK_FILE = "task file content"


@dataclass(frozen=True)
class Finished:
    """folder: of the evaluation.  machine: what it was computed on, empty if not recorded."""

    id: str
    folder: Path
    path: Path
    result: Result
    machine: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Results of one task, one kind of features and one training size: they may be compared.

    arms: arm -> seed -> finished job, in the order of the plan.  planned: arm -> number of planned seeds.
    settings: what distinguishes this group from another of the same task, features and size ("" if none).
    """

    task: str
    features: str
    train_size: int | None
    settings: str
    arms: dict[str, dict[int, Finished]]
    planned: dict[str, int]

    @property
    def title(self) -> str:
        features = "learned vectors" if self.features == "learned" else self.features
        size = "" if self.train_size is None else counted(self.train_size, "training example")
        return one_line(", ".join(filter(None, [self.task, features, size, self.settings])))

    @property
    def finished(self) -> list[Finished]:
        return [job for seeds in self.arms.values() for job in seeds.values()]

    @property
    def any(self) -> Finished:
        """One of them, for what all have alike."""
        return self.finished[0]

    @property
    def main(self) -> str | None:
        """The arm the report is about: "pretrained", or the last one with graphs."""
        if "pretrained" in self.arms:
            return "pretrained"
        return next((arm for arm in reversed(self.arms) if self._first(arm).components), None)

    def _first(self, arm: str) -> Result:
        return next(iter(self.arms[arm].values())).result


def grouped(finished: list[Finished], planned: dict[Path, list[dict[str, Any]]]) -> list[Group]:
    """planned: folder of an evaluation -> the jobs of its plan."""
    arms_in_order = list(dict.fromkeys(job["arm"] for jobs in planned.values() for job in jobs))
    files: dict[tuple[str, str, int | None], set[str]] = {}
    for job in finished:
        if content := job.result.fingerprints.get("task_file"):
            files.setdefault(_place(job.result.job), set()).add(content)

    def settings_of(result: Result) -> dict[str, Any]:
        """An older result does not say what its task's file was: the one that those beside it are of."""
        settings, here = _settings(result), files.get(_place(result.job), set())
        return {**settings, _TASK_FILE: next(iter(here))} if len(here) == 1 else settings

    tables: dict[tuple[str, str, int | None], dict[str, list[Finished]]] = {}
    for job in finished:
        variant = repr(sorted(settings_of(job.result).items()))
        tables.setdefault(_place(job.result.job), {}).setdefault(variant, []).append(job)
    groups = []
    for place, variants in tables.items():
        all_settings = [settings_of(jobs[0].result) for jobs in variants.values()]
        for settings, jobs in zip(all_settings, variants.values(), strict=True):
            # Settings shared by all tables of this place are not worth a heading; those that differ are.
            differing = {
                k: v for k, v in settings.items() if any(other.get(k) != v for other in all_settings)
            }
            arms = {arm: _by_seed(arm, jobs) for arm in arms_in_order}
            arms = {arm: seeds for arm, seeds in arms.items() if seeds}
            # A folder with results in another table of this place alone has other data: its plan is not of this one.
            here = {job.folder for job in jobs}
            elsewhere = {job.folder for others in variants.values() for job in others} - here
            own = [job for folder, of_plan in planned.items() if folder not in elsewhere for job in of_plan]
            counts = {arm: _seeds_planned(own, place, arm, differing) for arm in arms}
            groups.append(Group(*place, ", ".join(f"{k} {v}" for k, v in differing.items()), arms, counts))
    return groups


def _by_seed(arm: str, jobs: list[Finished]) -> dict[int, Finished]:
    """A job with the same result in two folders, one a copy of the other, counts once."""
    seeds: dict[int, Finished] = {}
    for job in sorted((job for job in jobs if job.result.arm == arm), key=lambda job: job.result.seed):
        before = seeds.setdefault(job.result.seed, job)
        if before.id != job.id:
            raise DataError(
                f"{before.path} and {job.path} are both arm {arm!r}, seed {job.result.seed} of task "
                f"{job.result.task!r}. Report them separately, or give the arms different names."
            )
        a, b = ({"test": one.result.test, **one.result.fingerprints} for one in (before, job))
        if differing := [f"{k} {a.get(k)} and {b.get(k)}" for k in a | b if a.get(k) != b.get(k)]:
            raise DataError(
                f"{before.path} and {job.path} are of the same job, but differ: {', '.join(differing)}. Report "
                "them separately, or leave out the folder that should not count."
            )
    return seeds


def _seeds_planned(
    planned: list[dict[str, Any]], place: tuple[str, str, int | None], arm: str, settings: dict[str, Any]
) -> int:
    jobs = [job for job in planned if job["arm"] == arm and _place(job) == place]
    return len({job["seed"] for job in jobs if all(job.get(k, v) == v for k, v in settings.items())})


def _place(job: dict[str, Any]) -> tuple[str, str, int | None]:
    return job["task"], features_name(job["features"]), job["train_size"]


def features_name(text: str) -> str:
    """The spec of features with the name of the file or folder alone, without its ending: glove.6B.100d."""
    spec = FeatureSpec.parse(text)
    name = address_parts(spec.source)[0].rstrip("/").rsplit("/", 1)[-1]
    if spec.kind == "vectors":
        name = re.sub(r"(\.(txt|vec|npz|tsv))?(\.(gz|xz|zst))?$", "", name) or name
    return str(replace(spec, source=name))


def _settings(result: Result) -> dict[str, Any]:
    """A setting that came after the result was made has its default there."""
    job = {**{f.name: f.default for f in fields(FinetuneJob)}, **result.job}
    settings = {key: value for key, value in job.items() if key not in _NOT_A_SETTING}
    return {
        **settings,
        # vectors of the same name are not always the same vectors
        "features content": result.fingerprints.get("features"),
        _TASK_FILE: result.fingerprints.get("task_file"),
        "task_version": result.task_version,
        "data": result.fingerprints.get("data"),
    }
