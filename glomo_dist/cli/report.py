"""Print the table of an evaluation and write report.html: one file with tables, curves, drawn graphs, provenance.

Examples:
  glomo report results --runs run --out report.html
  glomo report results/sst2 results/digits --runs runs/text runs/pixels --out report.html

Only files are read, nothing is computed again. Each number leads back to the shards, model and code it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from glomo_dist.cli.arguments import parse, shown_as
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.signals import STOP_SIGNALS, as_interrupt


@dataclass(frozen=True)
class Report:
    results: Positional[Annotated[tuple[str, ...], shown_as("required", "RESULTS [RESULTS ...]")]]
    """Output folders of `glomo evaluate`."""
    out: str = "report.html"
    """File to write; an older one is replaced."""
    runs: Annotated[tuple[str, ...], shown_as("default: none")] = ()
    """Run folders of `glomo pretrain`: their losses and empty rows are shown."""
    stores: Annotated[tuple[str, ...], shown_as("default: none")] = ()
    """Graph stores to draw, beside those of the results."""
    tasks: Annotated[tuple[str, ...], shown_as("default: none")] = ()
    """The .py files of tasks of your own, which are run: for their drawn graphs and published numbers."""


def main(argv: Sequence[str]) -> None:
    command = parse(Report, argv, name="report", description=__doc__)
    if not command.results:
        raise ConfigError("report: no results given. Name the output folders of `glomo evaluate`.")
    # Seconds, which neither --help nor a mistyped flag should wait for.
    from glomo_dist.report import as_text, build

    with as_interrupt(STOP_SIGNALS):  # no temporary file stays
        found = build(command.results, command.out, command.runs, command.stores, command.tasks)
    print(as_text(found))
    say(f"report: {Path(command.out).resolve()}")
