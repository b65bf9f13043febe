"""The results as rows of numbers, and those rows as text for a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from glomo_dist.report.groups import Group
from glomo_dist.report.names import one_line, printable, ruled, short
from glomo_dist.report.remarks import cautions
from glomo_dist.report.results import Results
from glomo_dist.report.statistics import Estimate, Paired, estimate, paired
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.job import window_size

REFERENCE = "none"
NAMES = {
    "none": "no graph",
    "uniform": "uniform graph",
    "random": "random predictor",
    "pretrained": "pretrained graph",
}


@dataclass(frozen=True)
class Row:
    """One arm. score: test metric.  to_none: this arm − no graph.  main_minus: the main arm − this arm."""

    arm: str
    score: Estimate
    planned: int
    seeds: tuple[int, ...]
    to_none: Paired | None
    main_minus: Paired | None


@dataclass(frozen=True)
class Table:
    """A row for each arm of the group.  main: the arm that the others are compared with, see `Group.main`."""

    group: Group
    main: str | None
    rows: tuple[Row, ...]


def tables(results: Results) -> list[Table]:
    return [_table(group) for group in results.groups]


def _table(group: Group) -> Table:
    scores = {
        arm: {seed: job.result.test for seed, job in seeds.items()} for arm, seeds in group.arms.items()
    }
    main = group.main
    rows = []
    for arm, values in scores.items():
        to_none = paired(values, scores[REFERENCE]) if arm != REFERENCE and REFERENCE in scores else None
        against = paired(scores[main], values) if main is not None and arm != main else None
        rows.append(
            Row(arm, estimate(list(values.values())), group.planned[arm], tuple(values), to_none, against)
        )
    return Table(group, main, tuple(rows))


def arm_name(arm: str) -> str:
    window = window_size(arm)
    return f"window of {window}" if window else NAMES.get(arm, one_line(arm))


def score_text(score: Estimate) -> str:
    """Percent: "84.31 ± 0.52"; without the spread for one seed."""
    if score.mean is None:
        return "–"
    return f"{100 * score.mean:.2f}" + ("" if score.sd is None else f" ± {100 * score.sd:.2f}")


def seeds_text(row: Row) -> str:
    return f"{row.score.n}" if row.score.n == row.planned else f"{row.score.n} of {row.planned}"


def difference_text(pair: Paired | None) -> str:
    """Points: "+1.20 [+0.40, +2.00], p = 0.012"; says so where too few seeds, or equal differences, allow no more."""
    if pair is None:
        return "–"
    d = pair.difference
    if d.mean is None:
        return "no common seed"
    if d.low is None or d.high is None:
        return f"{_points(d.mean)} (1 seed: no interval)"
    text = f"{_points(d.mean)} [{_points(d.low)}, {_points(d.high)}]"
    text += " (no spread)" if pair.p is None else f", {p_text(pair.p)}"
    return text + (f" ({counted(d.n, 'common seed')})" if pair.missing else "")


def _points(share: float) -> str:
    rounded = round(100 * share, 2) + 0.0  # no negative zero
    return f"{rounded:+.2f}".replace("-", "−")


def p_text(p: float) -> str:
    """Three digits below 0.1, and as many as it takes to show that p is below 0.05, where it is."""
    if p < 0.001:
        return "p < 0.001"
    digits = 2 if p >= 0.1 else 3
    while p < 0.05 and round(p, digits) >= 0.05:
        digits += 1
    return f"p = {p:.{digits}f}"


def header(table: Table) -> list[str]:
    """The names of the columns of `cells`."""
    metric = one_line(table.group.any.result.metric)
    columns = ["arm", f"test {metric}, %", "seeds", "difference to no graph"]
    return columns + ([f"{short(arm_name(table.main))} minus this"] if table.main else [])


def cells(table: Table) -> list[list[str]]:
    lines = []
    for row in table.rows:
        line = [arm_name(row.arm), score_text(row.score), seeds_text(row), difference_text(row.to_none)]
        lines.append(line + ([difference_text(row.main_minus)] if table.main else []))
    return lines


def other_metrics(table: Table) -> list[list[str]]:
    """All that the task measures besides its metric, a line each, the first one the arms; [] if there is nothing."""
    arms = [[job.result for job in seeds.values()] for seeds in table.group.arms.values()]
    main = table.group.any.result.metric
    names = [
        name for name in dict.fromkeys(name for of in arms for r in of for name in r.metrics) if name != main
    ]
    lines = [
        [
            one_line(name),
            *(score_text(estimate([r.metrics[name] for r in of if name in r.metrics])) for of in arms),
        ]
        for name in names
    ]
    return [["other test metrics, %", *map(arm_name, table.group.arms)], *lines] if lines else []


def as_text(results: Results) -> str:
    """For the terminal."""
    parts = []
    for table in tables(results):
        parts.append("\n".join([table.group.title, "", *ruled([header(table), *cells(table)])]))
        if others := other_metrics(table):
            parts.append("\n".join(ruled(others)))
    return printable("\n\n".join(parts + _remarks(results)) + "\n")


def job_and_others(id: str, jobs: int) -> str:
    """ "ID", or "ID and 35 others" for the first of 36 jobs."""
    return id if jobs == 1 else f"{id} and {counted(jobs - 1, 'other')}"


def _remarks(results: Results) -> list[str]:
    lines = [
        "Mean ± standard deviation over seeds; differences are paired by seed, with 95 % confidence interval and "
        "paired t-test."
    ]
    if results.failed:
        lines.append(
            f"{counted(len(results.failed), 'job')} failed: "
            + "; ".join(one_line(f"{job_and_others(f.id, jobs)}: {f.error}") for f, jobs in results.failures)
        )
    if results.missing:
        lines.append(
            f"{counted(len(results.missing), 'planned job has', 'planned jobs have')} no result yet."
        )
    if results.strays:
        lines.append(
            f"{counted(len(results.strays), 'result belongs', 'results belong')} to no job of the newest plan of the "
            "folder: left out. Run `glomo evaluate` with all seeds and arms that belong into the table."
        )
    return lines + cautions(results)
