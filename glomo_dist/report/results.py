"""Result folders of `glomo evaluate`, read strictly. Nothing is recomputed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glomo_dist.data.storage.files import listed
from glomo_dist.evaluate.attempt import ERROR, JOB, RESULT, job_folder, result_files
from glomo_dist.evaluate.executor import PLAN, PLAN_FORMAT, PLAN_VERSION
from glomo_dist.report.groups import Finished, Group, features_name, grouped
from glomo_dist.report.names import one_line
from glomo_dist.runtime.errors import ConfigError, DataError
from glomo_dist.runtime.formats import check_format
from glomo_dist.runtime.json_files import read_json
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.result import Result, wrong_field

_EXPECTED = "Give the output folder of `glomo evaluate`."


@dataclass(frozen=True)
class Failed:
    """A job that raised, hung or died. folder: of the evaluation.  error: the last line of the traceback."""

    id: str
    folder: Path
    error: str
    traceback: str


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
                    failed.append(Failed(id, folder, str(error["error"]), str(error["traceback"])))
            else:
                missing.append(id)
        strays += sorted({p.parent.name for p in result_files(folder)} - set(ids))
    if not finished:
        raise DataError(f"{', '.join(map(str, folders))}: {_why_none(failed, strays)}")
    return Results(grouped(finished, planned), failed, missing, strays, commands)


def _why_none(failed: list[Failed], strays: list[str]) -> str:
    text = "no job of the plan has a result."
    if failed:
        text += one_line(
            f" {counted(len(failed), 'job')} failed, the first with: {failed[0].error} (traceback: "
            f"{job_folder(failed[0].folder, failed[0].id) / ERROR})."
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
