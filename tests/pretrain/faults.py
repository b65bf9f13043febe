"""The long set of fault tests: `make faults`. Ends with a table: promise, how it is attacked, how often, result.

    python tests/pretrain/faults.py [--kills 20] [--save-kills 50] [--only NAME ...] [--results FILE]

Results are added to FILE (JSON) after each part, so that the set can be run in pieces; the table shows them all.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path

from fault_parts import PARTS, Set
from fault_runs import SHORT, with_stage
from nursery import nursery
from pretrain_samples import write_text

from glomo_dist.data import prepare_text
from glomo_dist.runtime import json_files


def table(results: dict[str, dict[str, object]]) -> str:
    lines = ["| promise | attack | times | result | date |", "|---|---|---|---|---|"]
    for name in PARTS:
        if name in results:
            row = results[name]
            lines.append(
                f"| {row['promise']} | {row['attack']} | {row['times']} | {row['result']} | {row['date']} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--save-kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    results = {}
    if arguments.results and arguments.results.exists():
        results = json_files.read_json(arguments.results)
    failed = []
    with tempfile.TemporaryDirectory(prefix="glomo-faults-") as scratch, nursery() as ranks:
        folder = Path(scratch)
        text = write_text(folder / "text.jsonl")
        shards = prepare_text([str(text)], folder / "shards", vocab_size=50)
        s = Set(ranks, shards, folder, arguments.kills, arguments.save_kills, random.Random(arguments.seed))
        for stage in (1, 3):  # the nursery learns from runs that end well what there is to import
            ranks.run(with_stage(SHORT, stage, steps=1), shards, folder / f"first{stage}")
        for name in arguments.only:
            began = time.monotonic()
            try:
                row = dataclasses.asdict(PARTS[name](s))
            except Exception:
                traceback.print_exc()
                failed.append(name)
                row = {"promise": name, "attack": "", "times": 0, "result": "FAILED, see the output"}
            results[name] = {**row, "date": date.today().isoformat(), "seconds": time.monotonic() - began}
            if arguments.results:
                json_files.write_json(arguments.results, results)
            print(f"{name}: {row['result']} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    print(table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
