"""Short names for content: what produced an artefact, so that a report row leads back to its inputs."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import glomo_dist
from glomo_dist.runtime.secrets import shown

COMMAND_VARIABLE = "GLOMO_COMMAND"  # set for the ranks of a run
# Inside a hook these name the repository of the hook. (Other variables of git are its configuration.)
_OF_A_HOOK = {
    f"GIT_{name}"
    for name in ("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "COMMON_DIR", "NAMESPACE", "PREFIX")
}


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of `value` (JSON-able) in canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(_bytes(canonical)).hexdigest()[:16]


def _bytes(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which is legal in JSON, gets three bytes of its own."""
    return text.encode(errors="surrogatepass")


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of `parts`, the same on every machine and Python."""
    digest = hashlib.sha256(_bytes("\0".join(str(p) for p in parts))).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def command_line() -> str:
    """The command this work was started with; a process started on its behalf names the first one.

    Without what is secret in its addresses.
    """
    return shown(os.environ.get(COMMAND_VARIABLE) or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


@lru_cache(maxsize=1)
def code_version() -> str:
    """The package version, with the git commit when the code runs from a checkout ("+dirty" if it changed)."""
    root = Path(__file__).resolve().parents[2]

    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        except OSError:  # no git here
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    if not (root / ".git").exists() or not (commit := git("rev-parse", "--short=12", "HEAD")):
        return glomo_dist.__version__
    return f"{glomo_dist.__version__}+{commit}{'.dirty' if git('status', '--porcelain') else ''}"
