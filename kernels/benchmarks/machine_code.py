"""What a compiled Triton kernel takes, read from its machine code and from the layouts of its products."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

MATRIX = r"\b(HMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA|UTC\w*MMA)\b"
COPY = r"\b(LDGSTS|UTMALDG|UBLKCP)\b"
NARROW = r"\b(LDG|STG)\.E\.U(8|16)\b"  # of memory, one number of half precision at a time
SLOW = r"\bF2F\b"  # a conversion of one number, at the rate of a square root; of two at a time it is F2FP


def counts(cubin: bytes) -> dict[str, Any]:
    """Registers, stack and spills of a thread; matrix instructions, copies, the loop, slow conversions, narrow
    accesses, length."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
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
        "matrix": "+".join(sorted(set(re.findall(MATRIX, sass)))),
        "copy": "+".join(sorted(set(re.findall(COPY, sass)))),
        "loop": loop(sass),
        "slow": len(re.findall(SLOW, sass)),
        "narrow": len(re.findall(NARROW, sass)),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.M)),
    }


def work(ttgir: str) -> float | None:
    """Products done over products asked for, of wgmma and mma: more than 1 where warps repeat what others do."""
    layouts = {}
    for name, *numbers in re.findall(
        r"(#mma\d*) = #ttg\.nvidia_mma<.*?warpsPerCTA = \[(\d+), (\d+)\].*?instrShape = \[(\d+), (\d+)", ttgir
    ):
        layouts[name] = [int(number) for number in numbers]
    done = asked = 0.0
    dots = r"(?:warp_group_dot|tt\.dot) .*?: [^:]*?<\d+x(\d+)x.* -> tensor<(\d+)x(\d+)xf32, (#mma\d*)>"
    for depth, rows, columns, layout in re.findall(dots, ttgir):
        down, across, high, wide = layouts[layout]
        products = int(depth) * int(rows) * int(columns)
        # a warp of wgmma has 16 of its 64 rows
        done += products * max(1, down * min(high, 16) / int(rows)) * max(1, across * wide / int(columns))
        asked += products
    return round(done / asked, 2) if asked else None


def loop(sass: str) -> int | None:
    """Instructions of the shortest loop with a matrix instruction: one step over a tile without masks."""
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)
    place = {int(at, 16): index for index, (at, _) in enumerate(code)}
    lengths = []
    for index, (_, text) in enumerate(code):
        jump = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        start = place.get(int(jump[1], 16), index) if jump else index
        if start < index and any(re.search(MATRIX, step) for _, step in code[start:index]):
            lengths.append(index - start + 1)
    return min(lengths, default=None)
