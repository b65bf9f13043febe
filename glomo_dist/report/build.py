"""report.html: one file that needs nothing else, the table first, the plots after, then what produced it all."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from glomo_dist.data.storage.files import listed
from glomo_dist.graphs.store import GraphStore
from glomo_dist.report import curves, drawings, provenance, remarks, scores
from glomo_dist.report.groups import Finished
from glomo_dist.report.names import one_line, store_name
from glomo_dist.report.pages import rendered, require_file, write_page
from glomo_dist.report.results import Results, read_results
from glomo_dist.report.runs import Run, read_runs
from glomo_dist.report.table import arm_name, cells, header, job_and_others, other_metrics, seeds_text, tables
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.files import COMMAND_FILE
from glomo_dist.runtime.json_files import read_json
from glomo_dist.runtime.paths import output
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.datasets.dataset import Task, TaskData
from glomo_dist.transfer.registry import TASKS, chosen_tasks, get_task

UNKNOWN_PLACE = (
    " Nothing says where the data of this store lie: no result is of them, nor has it a whole command.json."
)


def build(
    results: str | Path | Sequence[str | Path],
    out: str | Path,
    run_folders: str | Path | Sequence[str | Path] = (),
    stores: str | Path | Sequence[str | Path] = (),
    tasks: str | Path | Sequence[str | Path] = (),
) -> Results:
    """Write the report to the file `out` and return the results it shows (for `as_text`).

    out: replaced if it is there; a link leads to what is replaced, a pipe or a device (/dev/null) is written to.
    results: output folders of `glomo evaluate`.  run_folders: pretraining runs.  stores: graph stores to draw
    beside those of the results.  tasks: files of those that are not of the package; without them, as no code is run
    that a result names, their published numbers and drawings are left out. One of each need not be in a list.
    Raises GlomoError naming the file for anything that cannot be read. A store of the results that is gone, or whose
    task data are gone, is a sentence in the report.
    """
    out = output(out)
    require_file(out, "report.html")
    known = {**TASKS, **{name: get_task(name, file) for name, file in chosen_tasks(listed(tasks)).items()}}
    found = read_results(results)
    pretraining = read_runs(run_folders)
    # The name of a folder given as "." or ".." is in its full path alone. One that was asked for is there, or its
    # name is wrong.
    asked = {Path(os.path.abspath(store)): GraphStore.open(store) for store in listed(stores)}
    write_page(out, _render(found, pretraining, asked, known))
    return found


def _render(
    results: Results, pretraining: list[Run], asked: dict[Path, GraphStore], tasks: Mapping[str, Task]
) -> str:
    used = provenance.store_paths(results.finished)
    stores = {**asked, **{path: _open(path) for path in used if path not in asked}}
    drawn, not_drawn = _drawings(results.finished, used, asked, stores, tasks)
    return rendered(
        "report.html",
        counted=counted,
        finished=len(results.finished),
        failed=results.failed,
        failures=[(job, job_and_others(job.id, jobs)) for job, jobs in results.failures],
        missing=results.missing,
        strays=results.strays,
        cautions=remarks.cautions(results),
        sections=_sections(results, tasks),
        runs=[(run.name, curves.loss_figure(run), curves.empty_rows_figure(run)) for run in pretraining],
        drawings=drawn,
        not_drawn=not_drawn,
        facts=provenance.facts(results, pretraining, stores),
    )


def _sections(results: Results, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    sections = []
    for table in tables(results):
        result = table.group.any.result
        task = tasks.get(result.task)
        others = other_metrics(table)
        sections.append(
            {
                "title": table.group.title,
                "header": header(table),
                "rows": [
                    (row.arm == table.main, [_unbroken(cell) for cell in line])
                    for row, line in zip(table.rows, cells(table), strict=True)
                ],
                "others": others and (others[0], [(False, line) for line in others[1:]]),
                "majority": None if result.majority is None else f"{100 * result.majority:.2f}",
                "classes": len(result.classes),
                "examples": result.examples,
                "remarks": remarks.about_examples(table.group),
                "source": "" if task is None else task.data_source,
                "published": () if task is None else task.published,
                "incomplete": [
                    f"{arm_name(r.arm)} ({seeds_text(r)})" for r in table.rows if r.score.n < r.planned
                ],
                "unpaired": any(p and p.missing for r in table.rows for p in (r.to_none, r.main_minus)),
                "dots": scores.dots_figure(table.group),
                "curves": scores.curves_figure(table.group),
                "weights": scores.weights_figures(table.group),
            }
        )
    return sections


def _unbroken(cell: str) -> str:
    """With no-break spaces in "p = 0.51"."""
    return re.sub(r"\bp ([=<]) ", "p\u00a0\\1\u00a0", cell)


def _open(path: Path) -> GraphStore | GlomoError:
    """The store, or why it cannot be read: a report outlives its stores."""
    try:
        return GraphStore.open(path)
    except GlomoError as e:
        return e


def _drawings(
    finished: Sequence[Finished],
    used: Mapping[Path, Finished],
    asked: Mapping[Path, GraphStore],
    stores: Mapping[Path, GraphStore | GlomoError],
    tasks: Mapping[str, Task],
) -> tuple[list[drawings.Drawing], list[str]]:
    """One drawing per task and arm with graphs (of its first seed), and per further store."""
    sources: dict[Path, drawings.Source] = {}
    seen: set[tuple[str, str]] = set()
    for path, job in used.items():
        if (job.result.task, job.result.arm) not in seen:
            seen.add((job.result.task, job.result.arm))
            given = job.result.job
            name = arm_name(job.result.arm)
            sources[path] = drawings.Source(name, stores[path], given["task_source"], given["max_examples"])
    for path, store in asked.items():
        if path not in sources:
            place = _place_of_data(store, finished)
            sources[path] = drawings.Source(
                store_name(path), store, *(place or (None, None)), known=place is not None
            )

    @lru_cache(maxsize=1)  # each set is needed for one run of stores, and may be large
    def load(task: str, source: str | None, max_examples: int | None) -> TaskData:
        return tasks[task].data(source, max_examples)

    of_data: dict[Any, list[drawings.Source]] = {}
    for source in sources.values():
        of_data.setdefault(source.data, []).append(source)
    drawn, problems = [], []
    for source in itertools.chain(*of_data.values()):
        try:
            drawn.append(drawings.draw(source, tasks, load))
        except GlomoError as e:
            problems.append(f"{e}{'' if source.known else UNKNOWN_PLACE}")
            say(one_line(f"report: not drawn: {problems[-1]}"))
    return drawn, problems


def _place_of_data(store: GraphStore, finished: Iterable[Finished]) -> tuple[str | None, int | None] | None:
    """Source and max_examples of the task data that the store is of: as a result of the same data had them, or as the
    `glomo export` that wrote it; None where neither says so."""
    for job in finished:
        if (job.result.task, job.result.fingerprints.get("data")) == (store.info.task, store.info.data):
            return job.result.job["task_source"], job.result.job["max_examples"]
    with contextlib.suppress(GlomoError, KeyError, TypeError):
        arguments = read_json(store.folder / COMMAND_FILE)["arguments"]
        source, max_examples = arguments["source"], arguments["max_examples"]
        there = (
            source is None or "://" in source or os.path.exists(source)
        )  # a path as it was typed, from its folder
        if there and isinstance(max_examples, int | None):
            return source, max_examples
    return None
