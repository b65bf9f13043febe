"""Compile the Triton kernels of affinity_mix for GPUs that are not here, and say what they take.

    python kernels/benchmarks/ahead_of_time.py            the full set, to results/triton_resources.csv
    python kernels/benchmarks/ahead_of_time.py --quick    the shapes that the tests look at, to the screen

The launchers run with tensors that have no memory and with `launch` replaced by a recorder, so what is compiled is
what a call would have compiled, for every configuration that the autotuner may choose. Each compilation runs in a
process of its own: one that crashes is a row of the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "triton_resources.csv"
# Bytes of shared memory that one program may take, from the CUDA programming guide.
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
MATRIX = r"\b(HMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA|UTC\w*MMA)\b"
COPY = r"\b(LDGSTS|UTMALDG|UBLKCP)\b"


class Request(NamedTuple):
    """One compilation. config: (BLOCK_M, BLOCK_N, warps, stages), or None for all candidates of the launcher."""

    kernel: str
    arch: int
    dtype: str
    width: int
    values: int
    kind: str = "relu"
    theta: bool = True
    stats: bool = False
    config: tuple[int, int, int, int] | None = None


def _record(request: Request) -> list[tuple[Any, Any, dict[str, Any]]]:
    """(kernel, candidates, arguments) of all the launches of one forward and backward pass, T 2048."""
    import torch
    from glomo_kernels.affinity_mix import triton_impl, triton_launch
    from glomo_kernels.scores import live_shape

    launches: list[tuple[Any, Any, dict[str, Any]]] = []
    triton_launch.launch = lambda kernel, _, candidates, __, arguments: launches.append(
        (kernel, candidates, arguments)
    )
    triton_impl._device = lambda _: (divmod(request.arch, 10), SHARED[request.arch])
    dtype = getattr(torch, request.dtype)
    q, k = (torch.empty(2, 8, 2048, request.width, dtype=dtype, device="meta") for _ in range(2))
    v = torch.empty(2, 8, 2048, request.values, dtype=dtype, device="meta")
    theta = torch.empty(2, 8, 2048, dtype=dtype, device="meta") if request.theta else None
    spans = torch.empty(2, 2048, 2, dtype=torch.int64, device="meta")
    topk = torch.empty(2, dtype=torch.int64, device="meta") if request.kind == "topk" else None
    norm = torch.empty(2, 8, 2048, device="meta")
    live = torch.empty(live_shape(q, k), dtype=torch.uint8, device="meta")
    triton_impl.forward(q, k, v, theta, spans, topk, request.kind, request.stats, False)
    triton_impl.backward(v, q, k, v, theta, spans, topk, v, norm, live, norm, request.kind)
    return launches


def candidates(request: Request) -> list[Request]:
    """The request once for each configuration that its launcher may choose."""
    launches = [launch for launch in _record(request) if launch[0].__name__ == request.kernel]
    return [request._replace(config=tuple(config)) for config in launches[0][1]]


def _source(kernel: Any, arguments: dict[str, Any], blocks: dict[str, int]) -> Any:
    """What the just-in-time compiler would derive from the arguments: types, constants, divisibility by 16."""
    import torch
    from triton.compiler import ASTSource

    types = {
        torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
        torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8",
    }  # fmt: skip
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        value = blocks[name] if name in blocks else arguments[name]
        if (
            parameter.is_constexpr
            or value is None
            or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize)
        ):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + types[value.dtype]
            hints[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if value < 1 << 31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                hints[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)


def compile_here(request: Request) -> dict[str, Any]:
    """Resources of one configuration. Takes seconds, and may end the process."""
    import triton
    from glomo_kernels.affinity_mix.triton_configs import Config
    from triton.backends.compiler import GPUTarget

    launches = [launch for launch in _record(request) if launch[0].__name__ == request.kernel]
    kernel, configs, arguments = launches[0]
    config = Config(*request.config) if request.config else configs[0]
    compiled = triton.compile(
        _source(kernel, arguments, config.blocks(kernel.arg_names)),
        target=GPUTarget("cuda", request.arch, 32),
        options={"num_warps": config.warps, "num_stages": config.stages},
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    found = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    return {
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]),
        "spills": len(re.findall(r"\bSTL(\.\w+)*\b", sass)),
        "shared": compiled.metadata.shared,
        "matrix": "+".join(sorted(set(re.findall(MATRIX, sass)))),
        "copy": "+".join(sorted(set(re.findall(COPY, sass)))),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.M)),
    }


def resources(request: Request, timeout_s: float = 900) -> dict[str, Any]:
    """compile_here in a process of its own; {"error": last line} if it fails."""
    command = [sys.executable, __file__, "--one", json.dumps(request._asdict())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {timeout_s:.0f} s"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": f"exit {done.returncode}: {lines[-1][:200] if lines else ''}"}


KERNELS = ("forward_kernel", "query_kernel", "key_kernel")


def quick(arch: int) -> list[Request]:
    """The paper's shape and 128/128, for one architecture."""
    return [
        Request(kernel, arch, "bfloat16", *widths) for widths in ((256, 64), (128, 128)) for kernel in KERNELS
    ]


def full() -> list[Request]:
    widths = {
        "bfloat16": ((256, 64), (128, 128), (64, 64), (256, 256)),
        "float16": ((256, 64), (128, 128)),
        "float32": ((256, 64), (64, 64)),
    }
    requests = []
    for arch in (80, 90, 100):
        for dtype, pairs in widths.items():
            requests += [Request(kernel, arch, dtype, *pair) for pair in pairs for kernel in KERNELS]
        paper = (arch, "bfloat16", 256, 64)
        requests += [Request("forward_kernel", *paper, stats=True)]
        requests += [Request(kernel, *paper, "square", False) for kernel in KERNELS]
        requests += [Request(kernel, *paper, "topk", False) for kernel in ("topk_kernel", *KERNELS)]
        requests += [Request(f"{name}_kernel", *paper) for name in ("limits", "row_lists", "column_lists")]
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", help="a Request as JSON: compile it in this process")
    parser.add_argument("--arch", type=int, choices=(80, 90, 100), help="only this one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compile_here(Request(**json.loads(options.one)))))
        return
    import triton

    requests = [r for arch in (80, 90, 100) for r in quick(arch)] if options.quick else full()
    requests = [r for r in requests if options.arch in (None, r.arch)]
    rows = []
    for request in (c for r in requests for c in candidates(r)):
        row = {"triton": triton.__version__, **request._asdict(), **resources(request)}
        row["config"] = " ".join(map(str, request.config or ()))
        rows.append(row)
        print(*row.values(), flush=True)
    if not options.quick:
        fields = list(dict.fromkeys(name for row in rows for name in row))
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
