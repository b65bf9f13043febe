"""Measure the kernels on this machine: every backend against plain PyTorch, on small cases, as a table.

Examples:
  glomo bench
  glomo bench --csv here.csv      # the same rows as a file, with machine, versions and date

The first row of a case, 1.00x, is plain PyTorch; the backend `reference` is a row like the others. All that compute
the same are compared with the first before they are timed; a wrong result is reported instead of a speed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glomo_dist.cli.arguments import parse
from glomo_dist.runtime.config import check_least
from glomo_dist.runtime.errors import GlomoError

PROGRAM = Path(__file__).resolve().parents[2] / "kernels" / "benchmarks" / "run.py"


@dataclass(frozen=True)
class Bench:
    csv: str | None = None
    """File for the measurements; rows are added to an older one."""
    full: bool = False
    """Larger sizes than those of the demo, too; takes minutes."""
    rounds: int = 11
    """Measurements of each case."""


def main(argv: Sequence[str]) -> None:
    command = parse(Bench, argv, name="bench", description=__doc__)
    if not PROGRAM.exists():
        raise GlomoError(
            f"{PROGRAM} does not exist: the benchmarks are in the source checkout, not in the installed package. "
            "Install with `make setup` from a checkout."
        )
    check_least(command, "", 1, "rounds")
    flags = ["--rounds", str(command.rounds)]
    flags += [] if command.full else ["--quick"]
    flags += ["--csv", command.csv] if command.csv else []
    code = _printed([sys.executable, str(PROGRAM), *flags])
    if code:
        raise GlomoError(f"the benchmark ended with exit code {code}; its message is above.")


def _printed(command: Sequence[str]) -> int:
    """The exit code of a program whose output is printed here, so that it ends where nobody reads that any more."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            for line in program.stdout:
                print(line, end="", flush=True)
        except BaseException:
            program.kill()
            raise
    return program.returncode
