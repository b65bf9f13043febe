"""compute-sanitizer over every kernel at small sizes: addresses (memcheck), shared memory (racecheck), and both ends
of what the caller allocates. Without it, where it refuses the device (as virtualised ones), or dry, the same run
without a checker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpu.part import KERNELS_FAILED, Part

# Errors that the driver returns, and that their callers expect (is there a context yet?), are no findings.
TOOLS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
FINDING = 9  # exit code for it; with those of its own the checker says that it cannot run


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
    plain = ("without a checker", program)
    runs = [plain]
    if checker is not None:
        always = [checker, "--error-exitcode", f"{FINDING}", "--tool"]
        runs = [(tool, [*always, tool, *options, *program]) for tool, options in TOOLS.items()]
    failed = []
    for number, (name, command) in enumerate(runs):
        share = part.left() / (len(runs) - number)
        try:
            code = subprocess.run(command, env=environment, check=False, timeout=max(5.0, share)).returncode
            outcome = f"exit code {code}, see log.txt" if code else "clean"
            if name in TOOLS and code not in (0, FINDING, KERNELS_FAILED):
                outcome = f"the checker cannot run here: {outcome}"
                runs[number + 1 :] = [plain]
            elif code:
                failed.append(name)
        except subprocess.TimeoutExpired:  # no proof, and no failure of the part
            outcome = f"not finished in {share:.0f} s, findings until then are in log.txt"
        part.note(f"{name}: {outcome}")
    if failed:
        sys.exit(f"not clean: {', '.join(failed)}")
