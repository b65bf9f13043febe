"""compute-sanitizer over every kernel at small sizes: addresses (memcheck), shared memory (racecheck), and both ends
of what the caller allocates. Without it, or dry, the same run without a checker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpu.part import Part

# Errors that the driver returns, and that their callers expect (is there a context yet?), are no findings.
TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}


def sanitizer() -> str | None:
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(place, "bin")) for place in places if place]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(folders)
    )


def main(part: Part) -> None:
    program = [sys.executable, "-m", "gpu.every_kernel", *(["--dry"] if part.dry else [])]
    # Every tensor an allocation of its own: an address behind it belongs to nobody.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    checker = None if part.dry else sanitizer()
    runs = {"without a checker": program}
    if checker is not None:
        always = [checker, "--error-exitcode", "9", "--tool"]
        runs = {tool: [*always, tool, *options, *program] for tool, options in TOOLS.items()}
    failed = []
    for number, (name, command) in enumerate(runs.items()):
        share = part.left() / (len(runs) - number)
        try:
            code = subprocess.run(command, env=environment, check=False, timeout=max(5.0, share)).returncode
            outcome = "clean" if code == 0 else f"exit code {code}, see log.txt"
            failed += [name] if code else []
        except subprocess.TimeoutExpired:  # no proof, and no failure of the part
            outcome = f"not finished in {share:.0f} s, findings until then are in log.txt"
        part.note(f"{name}: {outcome}")
    if failed:
        sys.exit(f"not clean: {', '.join(failed)}")
