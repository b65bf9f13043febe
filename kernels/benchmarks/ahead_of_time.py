"""Compile the Triton kernels for GPUs that are not here, and say what they take.

    python kernels/benchmarks/ahead_of_time.py            the full set, to results/triton_resources.csv
    python kernels/benchmarks/ahead_of_time.py --quick    the shapes that the tests look at, to the screen
    ... --arch 90 --triton FOLDER                         one architecture, with the Triton unpacked in FOLDER

Rows of the table with the same Triton and architecture are replaced, the others stay. What is compiled is what a call
would have compiled (triton_launches.py), for every configuration that the autotuner may choose. Each compilation runs
in a process of its own, forked from one that has imported everything: one that crashes is a row of the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triton_launches import Request, candidates, compile_here

RESULTS = Path(__file__).parent / "results" / "triton_resources.csv"
TIMEOUT_S = 600  # of one compilation


class Compiler:
    """A process with Triton imported, from `triton` if that is given, that forks for every compilation."""

    def __init__(self, triton: Path | None = None) -> None:
        path = [str(triton)] if triton else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path + [p for p in sys.path if p])}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.version = str(self._answer())

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"the compiling process ended with exit code {self._process.wait()}")
        return json.loads(line)

    def ask(self, what: str, request: Request) -> Any:
        assert self._process.stdin is not None
        print(json.dumps({"what": what, "request": request._asdict()}), file=self._process.stdin, flush=True)
        return self._answer()

    def resources(self, request: Request) -> dict[str, Any]:
        """compile_here in a process of its own; {"error": last line} if it fails."""
        return dict(self.ask("compile", request))

    def candidates(self, request: Request) -> list[Request]:
        """The request once for each configuration that its launcher may choose."""
        configs = self.ask("candidates", request)
        if isinstance(configs, dict):
            raise RuntimeError(f"{request}: {configs['error']}")
        return [request._replace(config=tuple(config)) for config in configs]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Answers lines of JSON on stdin with lines of JSON on stdout; the first says which Triton this is."""
    import triton
    from glomo_kernels.affinity_mix import triton_backward, triton_forward, triton_lists, triton_topk  # noqa: F401

    print(json.dumps(triton.__version__), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        request = Request(**asked["request"])
        task = compile_here if asked["what"] == "compile" else candidates
        print(json.dumps(_in_a_fork(task, request)), flush=True)


def _in_a_fork(task: Callable[[Request], Any], request: Request) -> Any:
    with tempfile.TemporaryFile("w+") as result, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(errors.fileno(), 2)
                signal.alarm(TIMEOUT_S)
                result.write(json.dumps(task(request)))
                result.flush()
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}".splitlines()[0], file=errors, flush=True)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        result.seek(0), errors.seek(0)
        if status == 0:
            return json.loads(result.read())
        lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
        return {"error": f"exit {os.waitstatus_to_exitcode(status)}: {lines[-1][:200] if lines else ''}"}


KERNELS = ("forward_kernel", "query_kernel", "key_kernel")
ARCHITECTURES = (80, 90, 100)
MEASURED = (
    "registers", "stack", "spills", "shared", "matrix", "copy", "loop", "work", "slow", "instructions", "error",
)  # fmt: skip


def quick(arch: int) -> list[Request]:
    """The paper's shape and 128/128, for one architecture."""
    return [
        Request(kernel, arch, "bfloat16", *widths) for widths in ((256, 64), (128, 128)) for kernel in KERNELS
    ]


def full() -> list[Request]:
    widths = {
        "bfloat16": ((256, 64), (128, 128), (64, 64), (128, 256), (256, 256)),
        "float16": ((256, 64), (128, 128)),
        "float32": ((256, 64), (64, 64)),
    }
    requests = []
    for arch in ARCHITECTURES:
        for dtype, pairs in widths.items():
            requests += [Request(kernel, arch, dtype, *pair) for pair in pairs for kernel in KERNELS]
        paper = (arch, "bfloat16", 256, 64)
        requests += [Request("forward_kernel", *paper, stats=True)]
        requests += [Request(kernel, *paper, "square", False) for kernel in KERNELS]
        requests += [Request(kernel, *paper, "topk", False) for kernel in ("topk_kernel", *KERNELS)]
        largest = Request("key_kernel", arch, "bfloat16", 256, 256, "topk", False)  # in shared memory
        requests += [largest]
        requests += [Request(f"{name}_kernel", *paper) for name in ("limits", "row_lists", "column_lists")]
        requests += [Request("softmax_kernel", arch, dtype, 0, 0, "", False) for dtype in widths]
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, help="only this one")
    parser.add_argument("--dtype", help="only this one")
    parser.add_argument("--kernel", help="only this one")
    parser.add_argument("--triton", type=Path, help="folder with another Triton's package in it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    from glomo_kernels.affinity_mix.triton_configs import Config

    compiler = Compiler(options.triton)
    requests = [r for arch in ARCHITECTURES for r in quick(arch)] if options.quick else full()
    requests = [r for r in requests if options.arch in (None, r.arch) and options.dtype in (None, r.dtype)]
    requests = [r for r in requests if options.kernel in (None, r.kernel)]
    rows = []
    for request in (c for r in requests for c in compiler.candidates(r)):
        row = {"triton": compiler.version, **request._asdict(), **compiler.resources(request)}
        row["config"] = str(Config(*request.config)) if request.config else ""
        rows.append({name: "" if value is None else str(value) for name, value in row.items()})
        print(*row.values(), flush=True)
        if not options.quick:
            save(rows, options.out)


def save(rows: list[dict[str, str]], path: Path) -> None:
    """Put the rows into the table, in the place of those with the same request."""
    before = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    names = ("triton", *Request._fields)
    table = {tuple(row[name] for name in names): row for row in (*before, *rows)}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, (*names, *MEASURED), restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(table[key] for key in sorted(table))


if __name__ == "__main__":
    main()
