"""What produced each number: fingerprints of data, graphs, models and code, machines, commands, wall times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glomo_dist.graphs.store import GraphStore
from glomo_dist.report.groups import Finished, features_name
from glomo_dist.report.names import store_name
from glomo_dist.report.results import Results
from glomo_dist.report.runs import Run
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.secrets import shown
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.export import live_model
from glomo_dist.transfer.features.coverage import percent


@dataclass(frozen=True)
class Fact:
    """A row of the provenance table. what: kind of artefact.  fingerprint: "" where there is none."""

    what: str
    name: str
    fingerprint: str
    details: str


def facts(
    results: Results, runs: Sequence[Run], stores: Mapping[Path, GraphStore | GlomoError]
) -> list[Fact]:
    """Each once, from the raw files to the commands.  stores: those of the results, and further ones."""
    jobs = results.finished
    every = [
        *(fact for run in runs for fact in _run_facts(run)),
        *(_store_fact(path, store) for path, store in stores.items()),
        *(fact for job in jobs for fact in _job_facts(job)),
        *_counts("code", (f"glomo-dist {job.result.code}" for job in jobs)),
        *_counts("machine", (_machine(job.machine) for job in jobs if job.machine)),
        *_time_facts(jobs),
        *_command_facts(results, runs),
    ]
    return list(dict.fromkeys(every))


def store_paths(jobs: Sequence[Finished]) -> dict[Path, Finished]:
    """Stores whose graphs the jobs used, with a job that did."""
    paths: dict[Path, Finished] = {}
    for job in jobs:
        if (path := _graphs(job)) and not live_model(path):
            paths.setdefault(Path(path), job)
    return paths


def _graphs(job: Finished) -> str | None:
    """Path of the graphs that the job used, not only for the size of its mixture."""
    return job.result.job.get("graphs") if job.result.components else None


def _run_facts(run: Run) -> Iterator[Fact]:
    data = run.config.get("data", {})
    yield Fact("shards", Path(data.get("folder", "?")).name, data.get("fingerprint", ""), "pretraining data")
    skipped = f" ({run.skipped:,} of them skipped)" if run.skipped else ""
    ranks, code = run.config.get("ranks", "?"), run.config.get("code", "?")
    details = f"{counted(run.steps, 'step')}{skipped}, ranks: {ranks}, {duration(run.seconds)}, code {code}"
    yield Fact("pretraining", run.name, "", details)


def _job_facts(job: Finished) -> Iterator[Fact]:
    """The data of its task, the model that computed its graphs, its features."""
    result = job.result
    sizes = ", ".join(f"{count:,} {split}" for split, count in result.examples.items())
    data = result.fingerprints.get("data") or ""
    yield Fact("task data", f"{result.task}, version {result.task_version}", data, sizes)
    if (path := _graphs(job)) and live_model(path):
        details = f"computed in the jobs by model {result.fingerprints['model']}"
        yield Fact("graphs", store_name(path), "", details)
    if features := result.fingerprints.get("features"):
        yield Fact("features", features_name(result.job["features"]), features, f"for {result.task}")


def _counts(what: str, names: Iterable[str]) -> Iterator[Fact]:
    """Each of the jobs' names, with how many jobs have it."""
    for name, count in Counter(names).items():
        yield Fact(what, name, "", counted(count, "job"))


def _machine(facts: dict[str, Any]) -> str:
    cpu, cores, python, torch = (facts.get(name, "?") for name in ("cpu", "cores", "python", "torch"))
    cores = counted(cores, "core") if isinstance(cores, int) else f"{cores} cores"
    processors = " and ".join(map(str, filter(None, [facts.get("gpu"), f"{cpu}, {cores}"])))
    return f"{processors}, Python {python}, torch {torch}"


def _time_facts(jobs: Sequence[Finished]) -> Iterator[Fact]:
    if jobs:
        seconds = sum(job.result.seconds for job in jobs)
        yield Fact("time", f"{duration(seconds)} of jobs", "", f"{duration(seconds / len(jobs))} a job")


def _command_facts(results: Results, runs: Sequence[Run]) -> Iterator[Fact]:
    commands = [run.config["command"] for run in runs if run.config.get("command")]
    for command in [*commands, *results.commands]:
        yield Fact("command", shown(command), "", "")


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _store_fact(path: Path, store: GraphStore | GlomoError) -> Fact:
    name = store_name(path)
    if isinstance(store, GlomoError):  # the results carry its fingerprint
        return Fact("graphs", name, "", "no longer there")
    info = store.info
    edges = sum(split["edges"] for split in info.splits.values())
    units = sum(split["units"] for split in info.splits.values())
    keep = "all edges" if info.keep is None else f"at most {counted(info.keep, 'edge')}"
    seed = "" if info.random_seed is None else f", seed {info.random_seed}"
    details = (
        f"{info.predictor} predictor{seed}, {counted(info.layers, 'layer')}, {counted(info.heads, 'head')}, {keep} a "
        f"row kept, {edges / max(1, 2 * units * info.layers * info.heads):.1f} edges a row, model {info.model}, "
        f"tokenizer {info.tokenizer}, code {info.code}"
    )
    if info.unknown_words is not None:
        details += f", {percent(info.unknown_words)} of the task's words unknown"
    return Fact("graphs", name, info.fingerprint, details)
