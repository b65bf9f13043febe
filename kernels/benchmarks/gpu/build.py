"""The extensions in place, for the Python that runs this: C++ with gcc, CUDA with nvcc, side by side."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from gpu.part import ROOT, Part

# In a process of its own: one that has looked for an extension before it was built does not find it later.
ASK = """
import glomo_kernels
from glomo_kernels import dispatch
for op in dispatch.TABLE:
    for name, reason in glomo_kernels.backends(op).items():
        print(op, name, reason or "usable", sep="\\t")
"""


def main(part: Part) -> None:
    commands = {
        "_cpu": ([sys.executable, "setup.py", "build_ext", "--inplace"], {"GLOMO_CUDA": "0"}),
        "_cuda": ([sys.executable, "kernels/build_cuda.py"], {}),
    }
    if part.dry:  # what is there is not built again
        commands = {
            n: c for n, c in commands.items() if importlib.util.find_spec(f"glomo_kernels.{n}") is None
        }
    running = {
        name: subprocess.Popen(command, cwd=ROOT, env={**os.environ, **more})
        for name, (command, more) in commands.items()
    }
    failed = [name for name, process in running.items() if process.wait() != 0]
    answers = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in answers.splitlines()]
    usable = [f"{op}: {name}" for op, name, reason in rows if reason == "usable"]
    part.note(f"built {', '.join(running) or 'nothing new'}; usable are {', '.join(usable)}")
    for op, name, reason in rows:
        if reason != "usable":
            part.note(f"{op}: not {name}: {reason}")
    missing = [row for row in rows if row[2] != "usable" and not part.dry]
    if failed or missing:
        sys.exit(f"not built: {', '.join(failed) or 'see above'}")
