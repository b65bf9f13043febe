"""Train the task model once per arm and seed, on Ray, and write one result each. Run again to do what is missing.

Examples:
  glomo evaluate --tasks sst2 --sources sst2=sst2/ --arms none uniform pretrained=graphs/sst2 \\
      --seeds 0 1 2 3 4 --features vectors.txt.xz --out results
  glomo evaluate plan.yaml --out results --seeds 0 1        # a plan in a file; flags change it
  glomo evaluate plan.yaml --out results --executor process # no Ray: for a debugger

An arm is `none` (no graph), `uniform`, `windowN` (the N nearest words), or NAME=STORE with any name, in which {task}
and {seed} are filled in. A run of `glomo pretrain` in the place of STORE: its graphs are computed in the jobs,
the same numbers. Equal seeds see the same examples in the same order in all arms. The plan is kept in OUT/plan.json,
a failed job in OUT/results/JOB/error.json: it does not stop the others.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from glomo_dist.cli.arguments import pairs, parse, shown_as
from glomo_dist.runtime import collector
from glomo_dist.runtime.config import from_dict, to_dict
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.progress import say
from glomo_dist.transfer.job import FinetuneSettings, needs_graphs

if TYPE_CHECKING:
    from glomo_dist.evaluate import EvaluationPlan

BARE_ARMS = ("none", "uniform", "window1", "window2", "window3")  # and so on


@dataclass(frozen=True)
class Evaluate:
    settings: Annotated[FinetuneSettings, arg(name="")]
    out: str
    """Folder of results; new, or of an earlier evaluation to go on with."""
    plan: Positional[Annotated[str | None, arg(metavar="[PLAN]")]] = None
    """A .yaml or .json file with a whole evaluation (see docs/evaluation.md); flags change it."""
    tasks: Annotated[tuple[str, ...], shown_as("required without a plan")] = ()
    """Names of tasks, or .py files with tasks of your own, which are run."""
    arms: Annotated[tuple[str, ...], shown_as("required without a plan")] = ()
    """none, uniform, window1, window2, ..., NAME=STORE, NAME=RUN."""
    sources: Annotated[tuple[str, ...], shown_as("default: none")] = ()
    """TASK=PATH of the data of each task that needs one."""
    features: Annotated[tuple[str, ...], shown_as("default: learned")] = ()
    """What it sees of words: learned[:WIDTH], a file of vectors, hf:ENCODER[@LAYER[,first]]; trnn: before one."""
    seeds: Annotated[tuple[int, ...], shown_as("default: 0 1 2")] = ()
    """One job per seed and arm."""
    train_sizes: Annotated[tuple[int | Literal["all"], ...], shown_as("default: all")] = ()
    """Training examples, to compare several; all: as many as there are."""
    executor: Literal["ray", "process"] = "ray"
    """ray: in parallel; process: one after the other in this process."""
    address: str | None = None
    """A running Ray cluster ("auto", "host:6379"); without it one is started here and stopped at the end."""
    cores: Annotated[int | None, shown_as("default: all")] = None
    """Of the local Ray."""
    job_cores: int = 1
    """Cores and threads of each job."""
    job_gpus: float = 0
    """GPUs of each job: 1, or a share of one (0.25: four jobs on each); with 0 it computes on the processor."""
    job_memory_gb: float | None = None
    """10^9 bytes that must be free where a job is started."""
    time_limit_seconds: float | None = None
    """Of each job."""


def main(argv: Sequence[str]) -> None:
    file, given = _plan_file(argv), None
    if file is not None:
        from glomo_dist.evaluate import read_plan

        given = read_plan(file)
    settings = from_dict(FinetuneSettings, given.settings if given else {}, f"{file}: settings")
    default = Evaluate(
        settings,
        tyro.MISSING,
        job_cores=given.cores if given else 1,
        job_gpus=given.gpus if given else 0,
        job_memory_gb=given.memory_gb if given else None,
        time_limit_seconds=given.time_limit_seconds if given else None,
    )
    command = parse(Evaluate, argv, name="evaluate", description=__doc__, default=default)
    _evaluate(command, _plan(command, given, _flags(argv)))


def _evaluate(command: Evaluate, plan: EvaluationPlan) -> None:
    # Seconds, which neither --help nor a mistyped flag should wait for.
    with collector.importing():
        from glomo_dist.evaluate import (
            InProcess,
            RayExecutor,
            evaluate,
            plan_jobs,
            reader_of,
            require_fitting_data,
        )
        from glomo_dist.evaluate.attempt import ERROR, job_folder
        from glomo_dist.evaluate.notes import notes
        from glomo_dist.transfer.finetune import require_kernels, run

    jobs = plan_jobs(plan)
    executor = InProcess() if command.executor == "process" else RayExecutor(command.cores, command.address)
    if command.executor == "process" or command.address is None:  # a cluster's nodes are asked by each job
        works = (job.work for job in jobs)
        for work in {(work.graphs, work.needs_graphs, work.device): work for work in works}.values():
            require_kernels(work)
    if command.executor == "process":
        for flag in ("address", "cores", "job_memory_gb"):
            if (value := getattr(command, flag)) is not None:
                say(
                    f"WARNING: evaluate: --{flag.replace('_', '-')} {value} is for Ray and changes nothing here."
                )
    read = reader_of(jobs)
    check = partial(require_fitting_data, read=read)
    summary = evaluate(jobs, run, command.out, executor, plan=to_dict(plan), read=read, check=check)
    say(f"{command.out}: {summary}")
    for line in notes(command.out, jobs, read):
        say(line)
    if summary.failed:
        first, alike = summary.main_reason()
        share = "" if alike == len(summary.failed) else f"{alike} of them "
        raise GlomoError(
            f"{len(summary.failed)} of {summary.jobs} jobs failed, {share}because: {first.error} "
            f"(traceback: {job_folder(command.out, first.id) / ERROR}). The results of the others are kept; run the "
            "same command again to try the failed ones again."
        )
    files = [file for file in plan.named_tasks().values() if file is not None]
    words = ["glomo", "report", command.out, *(["--tasks", *files] if files else []), "--out", "report.html"]
    say(f"next: {shlex.join(words)}")


def _plan_file(argv: Sequence[str]) -> str | None:
    """The plan's file among the arguments: it sets the defaults of the flags, so it is looked for first."""
    first = argv[0] if argv else ""
    if first.endswith((".yaml", ".yml", ".json")):
        return first
    for flag, word in pairwise(argv):  # a flag of several values would take it
        if word.endswith((".yaml", ".yml")) and "=" not in word and flag != "--out":
            raise ConfigError(f"evaluate: the plan must come first: glomo evaluate {shlex.quote(word)} ...")
    return None


def _flags(argv: Sequence[str]) -> set[str]:
    """Names of the settings that are given as flags, as a plan spells them."""
    words = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    words.discard("cores")  # of the local Ray
    return {word.removeprefix("no_").removeprefix("job_") for word in words}


def _plan(command: Evaluate, given: EvaluationPlan | None, flags: set[str]) -> EvaluationPlan:
    """flags: settings given on the command line; they hold for all tasks, also where the plan has others for one."""
    if command.plan is not None and given is None:
        raise ConfigError(
            f"evaluate: the plan {command.plan!r} must be a .yaml or .json file and come first."
        )
    for name in ("tasks", "arms", "sources", "features", "seeds", "train_sizes"):
        if name in flags and not getattr(command, name):
            raise ConfigError(
                f"evaluate: --{name.replace('_', '-')} has no value. Give one, or leave it out."
            )
    values: dict[str, Any] = {}
    for name in ("tasks", "features", "seeds"):
        if getattr(command, name):
            values[name] = getattr(command, name)
    if command.train_sizes:
        values["train_sizes"] = tuple(None if size == "all" else size for size in command.train_sizes)
    if command.arms:
        bare = [arm for arm in command.arms if not needs_graphs(arm)]
        if again := [arm for arm, times in Counter(bare).items() if times > 1]:
            raise ConfigError(f"--arms: {again[0]!r} is given twice.")
        others = [arm for arm in command.arms if arm not in bare]
        stores = pairs("--arms", others, "NAME=STORE", BARE_ARMS)
        values["arms"] = {**dict(zip(bare, bare, strict=True)), **stores}
    if command.sources:
        values["sources"] = pairs("--sources", command.sources, "TASK=PATH")
    values["settings"] = to_dict(command.settings)
    values["cores"] = command.job_cores
    values["gpus"] = command.job_gpus
    values["memory_gb"] = command.job_memory_gb
    values["time_limit_seconds"] = command.time_limit_seconds
    if given is not None:
        from glomo_dist.transfer.registry import chosen_tasks

        left = chosen_tasks(command.tasks or given.tasks)
        sources = {task: source for task, source in given.sources.items() if task in left}
        values["sources"] = {**sources, **values.get("sources", {})}
        values["task_settings"] = {
            task: {name: value for name, value in own.items() if name not in flags}
            for task, own in given.task_settings.items()
            if task in left
        }
        return dataclasses.replace(given, **values)
    for name in ("tasks", "arms"):
        if name not in values:
            raise ConfigError(f"evaluate: give --{name} or a plan file. See `glomo evaluate --help`.")
    from glomo_dist.evaluate import EvaluationPlan

    return EvaluationPlan(**values)
