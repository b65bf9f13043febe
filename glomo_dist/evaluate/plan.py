"""From one description of an evaluation to its jobs: tasks x arms x features x train sizes x seeds."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glomo_dist.evaluate.attempt import Job
from glomo_dist.evaluate.contents import Contents, graphs_at
from glomo_dist.graphs.index import PredictorKind
from glomo_dist.runtime.config import check_fields, from_dict, to_dict
from glomo_dist.runtime.errors import ConfigError, suggest
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.paths import absolute
from glomo_dist.runtime.progress import say
from glomo_dist.transfer.export import live_model
from glomo_dist.transfer.features.spec import FeatureSpec
from glomo_dist.transfer.job import PLANNED, SETTINGS, FinetuneJob, FinetuneSettings, needs_graphs
from glomo_dist.transfer.registry import chosen_tasks, get_task

_RESOURCES = ("cores", "gpus", "memory_gb", "time_limit_seconds")
# Settings for texts, with what says nothing about them: the default first.
_OF_TEXTS = {"reader": ("gru",), "state_cache": (None,), "features": (("learned",), ("pixels",))}


@dataclass(frozen=True)
class EvaluationPlan:
    """What to compare.

    tasks: names of tasks, or paths of .py files with tasks of your own, which are run. Everywhere else a task has the
        name that it has there.
    arms: name of the arm -> "none", "uniform", "windowN" (the N nearest units), or the path of a graph store, or of a
        model (its folder, a run's, or `glomo:NAME`), whose graphs the jobs then compute. `{task}` and `{seed}` in the
        path stand for the task's name and the seed, e.g. one random predictor per seed. The arms without graphs take
        the size of their mixture from the first store, so that all arms have the same parameters.
    features: what the task model sees of each word: "learned", "learned:WIDTH", a file of word vectors, an encoder
        "hf:ENCODER[@LAYER]", "trnn:" and one of these. Tasks of pixels see pixels.
    seeds: of the initial parameters, the order and the drawn training examples; equal seeds pair the arms.
    train_sizes: training examples (none: all).
    sources: task -> file or folder of its data, where it does not come with the installed packages.
    settings: fields of `FinetuneSettings` for all jobs.  task_settings: task -> the same, for its jobs only; cores,
        gpus, memory_gb and time_limit_seconds may be among them.
    cores: of each job, and its threads.  gpus: of each job; with one, or a share of one (0.25: four jobs on each), it
        computes there.  memory_gb: 10^9 bytes that must be free where a job is started.
    time_limit_seconds: of each job.
    """

    tasks: tuple[str, ...]
    arms: dict[str, str]
    features: tuple[str, ...] = ("learned",)
    seeds: tuple[int, ...] = (0, 1, 2)
    train_sizes: tuple[int | None, ...] = (None,)
    sources: dict[str, str | None] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    task_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    cores: int = 1
    gpus: float = 0
    memory_gb: float | None = None
    time_limit_seconds: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "plan: ")
        for name in ("tasks", "arms", "features", "seeds", "train_sizes"):
            values = list(getattr(self, name))
            if not values:
                raise ConfigError(f"plan: {name} is empty; give at least one.")
            same = [FeatureSpec.parse(v).absolute() for v in values] if name == "features" else values
            if len(set(same)) != len(values):
                raise ConfigError(f"plan: {name} has an entry twice: {', '.join(map(str, values))}.")
        pixels = [text for text in self.features if FeatureSpec.parse(text).kind == "pixels"]
        tasks = self.named_tasks()
        for task, file in tasks.items():
            if get_task(task, file).unit == "words" and pixels:
                raise ConfigError(
                    f"plan: features {pixels[0]!r} do not fit task {task!r}, whose units are words. Leave them out: "
                    "tasks of pixels see pixels without being told."
                )
        for name in ("sources", "task_settings"):
            for task in getattr(self, name):
                if task not in tasks:
                    raise ConfigError(
                        f"plan: {name} names {task!r}, which is not among its tasks.{suggest(task, tasks)}"
                    )
        for task, source in self.sources.items():
            if source is not None and not source.strip():  # as a path it would be the current folder
                raise ConfigError(f"plan: the source of task {task!r} is empty. Name one, or leave it out.")
        for arm, graphs in self.arms.items():
            if not arm.strip():  # it would be a row of the report that says nothing
                raise ConfigError(f"plan: an arm of {graphs!r} has no name. Give it one.")
            if arm != graphs and not (needs_graphs(arm) and needs_graphs(graphs)):
                raise ConfigError(
                    f"plan: arm {arm!r} is {graphs!r}. The arms without graphs are written 'none: none', "
                    "'uniform: uniform', 'window3: window3'; any other name stands for a graph store."
                )
        _require_known("settings", self.settings, SETTINGS)
        for task, settings in self.task_settings.items():
            _require_known(f"task_settings.{task}", settings, (*SETTINGS, *_RESOURCES))

    def named_tasks(self) -> dict[str, str | None]:
        """Name -> file (None: of the package) of each task."""
        return chosen_tasks(self.tasks)


def _require_known(where: str, keys: Iterable[str], known: Sequence[str]) -> None:
    for key in keys:
        if key in PLANNED:
            raise ConfigError(f"plan: {key!r} cannot be in {where}: it follows from the plan itself.")
        if key not in known:
            raise ConfigError(f"plan: unknown key {key!r} in {where}.{suggest(key, known)}")


def plan_jobs(plan: EvaluationPlan) -> tuple[Job, ...]:
    """All jobs, seeds outermost, so that an early look at the results compares all arms.

    Raises ConfigError if a store is of another task, a model is for other units or images are to be cut, and the
    errors of `GraphStore.open` and `FinetuneJob`. Warns of settings that none of the tasks they are for can use.
    """
    contents, tasks = Contents(), plan.named_tasks()
    jobs = tuple(
        _job(plan, contents, (task, file), arm, features, size, seed)
        for seed in plan.seeds
        for task, file in tasks.items()
        for features in (plan.features if get_task(task, file).unit == "words" else ("pixels",))
        for size in plan.train_sizes
        for arm in plan.arms
    )
    own = [({task: tasks[task]}, settings) for task, settings in plan.task_settings.items()]
    for some, settings in [(tasks, {**plan.settings, "features": plan.features}), *own]:
        _warn_of_keep(some, settings, jobs)
        _warn_of_texts(some, settings)
    return jobs


def _job(
    plan: EvaluationPlan,
    contents: Contents,
    named: tuple[str, str | None],
    arm: str,
    features: str,
    size: int | None,
    seed: int,
) -> Job:
    task, file = named
    chosen = get_task(task, file)
    where = f"plan: task {task!r}"
    # Arms without graphs take the store of the first arm that has one: only its number of layers and heads counts.
    owner = arm if needs_graphs(arm) else next(filter(needs_graphs, plan.arms), None)
    graphs = None
    if owner is not None:
        graphs = graphs_at(plan.arms[owner].replace("{task}", task).replace("{seed}", str(seed)))
        info = contents.graphs(graphs)
        _require_named_rightly(owner, graphs, info.predictor)
        if info.task not in (task, None):
            raise ConfigError(
                f"plan: arm {owner!r} has graphs of task {info.task!r} ({graphs}) for task {task!r}. "
                f"Name a store of {task!r}; a plan of several tasks needs {{task}} in the path."
            )
        if info.unit not in (chosen.unit, None):
            raise ConfigError(
                f"plan: arm {owner!r} has a model for {info.unit} ({graphs}), the units of task {task!r} are "
                f"{chosen.unit}. Name a model for {chosen.unit}; a plan with tasks of both needs {{task}} in the "
                "path."
            )
    source = plan.sources.get(task)
    own = dict(plan.task_settings.get(task, {}))
    resources = {name: own.pop(name, getattr(plan, name)) for name in _RESOURCES}
    # first, under the names that the plan has for them: the threads of the work are its cores
    job = from_dict(Job, {"id": f"{task}-{arm}", "work": None, **resources}, where)
    work = from_dict(
        FinetuneJob,
        {
            **plan.settings,
            **own,
            "task": task,
            "task_file": file,
            "arm": arm,
            "task_source": None if source is None else absolute(source),
            "graphs": graphs,
            "features": FeatureSpec.parse(features).absolute(),
            "seed": seed,
            "train_size": size,
            "device": "cuda" if job.gpus else "cpu",
            "threads": job.cores,
        },
        where,
    )
    if work.state_cache is not None:
        work = dataclasses.replace(work, state_cache=absolute(work.state_cache))
    chosen.limits(work.max_units)  # refused here once, where each job would
    return dataclasses.replace(job, id=_job_id(work, contents), work=work)


def _warn_of_keep(tasks: Mapping[str, str | None], settings: Mapping[str, Any], jobs: Sequence[Job]) -> None:
    """Where no job of the tasks computes graphs."""
    keep = settings.get("keep", FinetuneSettings.keep)
    graphs = {job.work.graphs for job in jobs if job.work.task in tasks}
    if keep != FinetuneSettings.keep and not any(map(live_model, graphs)):
        say(
            f"WARNING: evaluate: keep {keep!r} is for graphs that the jobs compute and changes nothing here: "
            "no arm has a model. A store has the edges that its `glomo export --keep` left."
        )


def _warn_of_texts(tasks: Mapping[str, str | None], settings: Mapping[str, Any]) -> None:
    """Of settings for texts where all tasks have images. A task of a file may have a reader that uses them."""
    if any(file or get_task(task, file).unit == "words" for task, file in tasks.items()):
        return
    for name, idle in _OF_TEXTS.items():
        if (value := settings.get(name, idle[0])) not in idle:
            say(
                f"WARNING: evaluate: {name} {value!r} is for texts and changes nothing here: the units of "
                f"{', '.join(tasks)} are pixels."
            )


def _require_named_rightly(arm: str, graphs: str, predictor: PredictorKind) -> None:
    """ConfigError for the two names that the report reads as a kind of predictor, if the graphs are of the other;
    what other arms are called is free."""
    other: dict[str, PredictorKind] = {"random": "trained", "pretrained": "random"}
    if other.get(arm) == predictor:
        raise ConfigError(
            f"plan: arm {arm!r} has the graphs of a {predictor} predictor ({graphs}); the report would call them "
            f"those of a {arm} one. Were two paths exchanged? An arm of any other name may have any graphs."
        )


def _job_id(work: FinetuneJob, contents: Contents) -> str:
    """A readable name and a fingerprint of every field of the job.

    A store counts by its content (its index), not by its path: moving a folder changes no id, and exporting
    again from another model makes another job. The same for a model, word vectors and encoders. Task data counts by
    its path, however spelled, the task's file not at all (`require_fitting_data` looks at the content of both), nor
    the cache of states. Nor the processor, which is the rule; a GPU does.
    """
    identity = to_dict(work)
    del identity["state_cache"], identity["task_file"]
    if work.device == "cpu":
        del identity["device"]
    if work.task_source is not None and "://" not in work.task_source:
        identity["task_source"] = os.path.normpath(work.task_source)
    if work.graphs is not None:
        info = contents.graphs(work.graphs)
        identity["graphs"] = info.fingerprint if work.needs_graphs else [info.layers, info.heads]
    identity["features"] = contents.features(work.features)
    features = FeatureSpec.parse(work.features).short().replace(":", "")
    size = "all" if work.train_size is None else str(work.train_size)
    readable = f"{work.task}-{work.arm}-{features}-n{size}-s{work.seed}"
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)[:80]}-{fingerprint(identity)[:10]}"
