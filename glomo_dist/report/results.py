"""Result folders of `glomo evaluate`, read strictly and grouped into what may be compared. Nothing is recomputed."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from glomo_dist.data.files import listed
from glomo_dist.evaluate.attempt import ERROR, JOB, RESULT, job_folder, result_files
from glomo_dist.evaluate.executor import PLAN, PLAN_FORMAT, PLAN_VERSION
from glomo_dist.report.names import counted, one_line
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.formats import check_format
from glomo_dist.runtime.json_files import read_json
from glomo_dist.transfer.features import FeatureSpec
from glomo_dist.transfer.job import PLANNED, FinetuneJob
from glomo_dist.transfer.result import Result, wrong_field

# What may differ between the rows of one table: the arm and its graphs, the seed, and where files lie.
_NOT_A_SETTING = (*PLANNED, "state_cache")
_EXPECTED = "Give the output folder of `glomo evaluate`."


@dataclass(frozen=True)
class Finished:
    """folder: of the evaluation.  machine: what it was computed on, empty if not recorded."""

    id: str
    folder: Path
    path: Path
    result: Result
    machine: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A job that raised, hung or died. error: the last line of the traceback."""

    id: str
    job: dict[str, Any]
    error: str
    traceback: str


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
        size = "" if self.train_size is None else f"{self.train_size:,} training examples"
        return one_line(", ".join(filter(None, [self.task, features, size, self.settings])))

    @property
    def finished(self) -> list[Finished]:
        return [job for seeds in self.arms.values() for job in seeds.values()]

    @property
    def any(self) -> Finished:
        return self.finished[0]

    @property
    def main(self) -> str | None:
        """The arm the report is about: "pretrained", or the last one with graphs."""
        if "pretrained" in self.arms:
            return "pretrained"
        return next((arm for arm in reversed(self.arms) if self._first(arm).components), None)

    def _first(self, arm: str) -> Result:
        return next(iter(self.arms[arm].values())).result


@dataclass(frozen=True)
class Results:
    """missing: ids of planned jobs with neither result nor error.  strays: ids of results no plan lists."""

    groups: list[Group]
    failed: list[Failed]
    missing: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    @property
    def finished(self) -> list[Finished]:
        return [job for group in self.groups for job in group.finished]

    @property
    def failures(self) -> list[tuple[Failed, int]]:
        """Each error once: the first job that has it, and how many have it; the most frequent first."""
        count = Counter(job.error for job in self.failed)
        first = {job.error: job for job in reversed(self.failed)}
        return [(first[error], jobs) for error, jobs in count.most_common()]


def read_results(folders: str | Path | Sequence[str | Path]) -> Results:
    """All results below the output folders of evaluations; a folder that is named twice counts once.

    Raises DataError naming the file: a folder without an evaluation, no result of a job of the plan, a damaged file;
    and where no folder is named.
    """
    folders = listed(folders)
    if not folders:
        raise DataError(f"no results were named. {_EXPECTED}")
    finished: list[Finished] = []
    failed: list[Failed] = []
    missing: list[str] = []
    strays: list[str] = []
    planned: dict[Path, list[dict[str, Any]]] = {}
    commands: list[str] = []
    for folder in {Path(folder).resolve(): Path(folder) for folder in folders}.values():
        plan = _plan(folder)
        with _whole(folder / PLAN):
            commands += [_text(plan["command"])] if plan.get("command") else []
            ids = [_text(entry["id"]) for entry in plan["jobs"]]
            planned[folder] = [entry["job"] for entry in plan["jobs"]]
            for job in planned[folder]:
                _require_types(job)
        for id, job in zip(ids, planned[folder], strict=True):
            here = job_folder(folder, id)
            if (here / RESULT).exists():
                finished.append(_finished(id, job, folder, here))
            elif (here / ERROR).exists():
                with _whole(here / ERROR):
                    error = read_json(here / ERROR)
                    failed.append(Failed(id, error["job"], str(error["error"]), str(error["traceback"])))
            else:
                missing.append(id)
        strays += sorted({p.parent.name for p in result_files(folder)} - set(ids))
    if not finished:
        raise DataError(f"{', '.join(map(str, folders))}: {_why_none(failed, strays)}")
    return Results(_group(finished, planned), failed, missing, strays, commands)


def _why_none(failed: list[Failed], strays: list[str]) -> str:
    text = "no job of the plan has a result."
    if failed:
        text += one_line(
            f" {counted(len(failed), 'job', 'jobs')} failed, the first with: {failed[0].error} (traceback: "
            f"{job_folder('', failed[0].id) / ERROR})."
        )
    if strays:
        return (
            f"{text} {counted(len(strays), 'result belongs', 'results belong')} to no job of the newest plan: run "
            "`glomo evaluate` again with the tasks, arms, seeds and settings that they are of; they are all kept."
        )
    return f"{text} Wait for `glomo evaluate`, or run it again."


def _plan(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is no folder. {_EXPECTED}")
    if not (folder / PLAN).exists():
        raise DataError(f"{folder} holds no evaluation (no {PLAN}). {_EXPECTED}")
    return check_format(
        read_json(folder / PLAN), PLAN_FORMAT, PLAN_VERSION, folder / PLAN, "the plan of an evaluation",
        instead=_EXPECTED, again="Run `glomo evaluate` again with this version.",
    )  # fmt: skip


def _finished(id: str, job: dict[str, Any], folder: Path, here: Path) -> Finished:
    path = here / RESULT
    result = Result.read(path)
    with _whole(path):
        features_name(result.job["features"])
        result.require_of(job, path)
    machine: dict[str, Any] = {}
    if (here / JOB).exists():
        with contextlib.suppress(DataError, AttributeError, TypeError, ValueError):  # a detail of provenance
            machine = dict(read_json(here / JOB).get("machine", {}))
    return Finished(id, folder, path, result, machine)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What is read of `path` in the block is there and of its type; DataError if not."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as e:
        raise DataError(
            f"{path}: not as `glomo evaluate` writes it ({type(e).__name__}: {e}). The file is damaged: delete it "
            "and run `glomo evaluate` again."
        ) from None


def _require_types(job: dict[str, Any]) -> None:
    """TypeError or ConfigError unless the fields of a job that are read here are of their types."""
    if wrong := wrong_field(job):
        raise TypeError(wrong)
    features_name(job["features"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _group(finished: list[Finished], planned: dict[Path, list[dict[str, Any]]]) -> list[Group]:
    arms_in_order = list(dict.fromkeys(job["arm"] for jobs in planned.values() for job in jobs))
    tables: dict[tuple[str, str, int | None], dict[str, list[Finished]]] = {}
    for job in finished:
        variant = repr(sorted(_settings(job.result).items()))
        tables.setdefault(_place(job.result.job), {}).setdefault(variant, []).append(job)
    groups = []
    for place, variants in tables.items():
        all_settings = [_settings(jobs[0].result) for jobs in variants.values()]
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
    name = spec.source.rstrip("/").rsplit("/", 1)[-1]
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
        "task_version": result.task_version,
        "data": result.fingerprints.get("data"),
    }
