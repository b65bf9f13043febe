"""What produced each number: fingerprints of data, graphs, models and code, machines, commands, wall times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glomo_dist.graphs.store import GraphStore
from glomo_dist.model.io import model_folder
from glomo_dist.report.names import counted
from glomo_dist.report.results import Finished, Results, features_name
from glomo_dist.report.runs import Run
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.secrets import shown
from glomo_dist.transfer.coverage import percent


@dataclass(frozen=True)
class Fact:
    """A row of the provenance table. what: kind of artefact.  fingerprint: "" where there is none."""

    what: str
    name: str
    fingerprint: str
    details: str


def facts(results: Results, runs: Sequence[Run], stores: Sequence[Path]) -> list[Fact]:
    jobs = results.finished
    found: dict[Fact, None] = {}
    for run in runs:
        data = run.config.get("data", {})
        found[
            Fact(
                "shards", Path(data.get("folder", "?")).name, data.get("fingerprint", ""), "pretraining data"
            )
        ] = None
        skipped = f" ({run.skipped:,} of them skipped)" if run.skipped else ""
        details = (
            f"{run.steps:,} steps{skipped}, ranks: {run.config.get('ranks', '?')}, {duration(run.seconds)}"
        )
        found[Fact("pretraining", run.name, "", f"{details}, code {run.config.get('code', '?')}")] = None
    for path in dict.fromkeys([*stores, *store_paths(jobs)]):
        found[_store_fact(path)] = None
    for job in jobs:
        result = job.result
        sizes = ", ".join(f"{count:,} {split}" for split, count in result.examples.items())
        data = result.fingerprints.get("data") or ""
        found[Fact("task data", f"{result.task}, version {result.task_version}", data, sizes)] = None
        path = result.job.get("graphs")
        if result.components and path and model_folder(path):
            details = f"computed in the jobs by model {result.fingerprints['model']}"
            found[Fact("graphs", "/".join(Path(path).parts[-2:]), "", details)] = None
        if result.fingerprints.get("features"):
            name = features_name(result.job["features"])
            found[Fact("features", name, result.fingerprints["features"] or "", f"for {result.task}")] = None
    by_code: dict[str, int] = defaultdict(int)
    by_machine: dict[str, int] = defaultdict(int)
    for job in jobs:
        by_code[job.result.code] += 1
        m = job.machine
        if m:
            cpu, cores, python, torch = (m.get(name, "?") for name in ("cpu", "cores", "python", "torch"))
            by_machine[f"{cpu}, {cores} cores, Python {python}, torch {torch}"] += 1
    for code, count in by_code.items():
        found[Fact("code", f"glomo-dist {code}", "", counted(count, "job", "jobs"))] = None
    for machine, count in by_machine.items():
        found[Fact("machine", machine, "", counted(count, "job", "jobs"))] = None
    if jobs:
        seconds = sum(job.result.seconds for job in jobs)
        found[Fact("time", f"{duration(seconds)} of jobs", "", f"{duration(seconds / len(jobs))} a job")] = (
            None
        )
    commands = [run.config["command"] for run in runs if run.config.get("command")]
    for command in dict.fromkeys([*commands, *results.commands]):
        found[Fact("command", shown(command), "", "")] = None
    return list(found)


def store_paths(jobs: Sequence[Finished]) -> dict[Path, Finished]:
    """Stores whose graphs the jobs used (not only for the size of the mixture), with a job that did."""
    paths: dict[Path, Finished] = {}
    for job in jobs:
        path = job.result.job.get("graphs")
        if job.result.components and path and not model_folder(path):
            paths.setdefault(Path(path), job)
    return paths


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _store_fact(path: Path) -> Fact:
    name = "/".join(path.parts[-2:])
    try:
        info = GraphStore.open(path).info
    except GlomoError:  # a report outlives its stores: the results carry their fingerprints
        return Fact("graphs", name, "", "no longer there")
    edges = sum(split["edges"] for split in info.splits.values())
    units = sum(split["units"] for split in info.splits.values())
    keep = "all" if info.keep is None else f"at most {info.keep}"
    seed = "" if info.random_seed is None else f", seed {info.random_seed}"
    details = (
        f"{info.predictor} predictor{seed}, {info.layers} layers, {info.heads} heads, {keep} edges a row kept, "
        f"{edges / max(1, 2 * units * info.layers * info.heads):.1f} edges a row, model {info.model}, "
        f"tokenizer {info.tokenizer}, code {info.code}"
    )
    if info.unknown_words is not None:
        details += f", {percent(info.unknown_words)} of the task's words unknown"
    return Fact("graphs", name, info.fingerprint, details)
