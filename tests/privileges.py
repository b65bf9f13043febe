"""What another user than root may not read: the tests may run as root, who may read every file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Be nobody for a while. What is imported first only then may not be found: call it once before."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """One that anybody may write into, which is not below root's own as `tmp_path` is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@contextlib.contextmanager
def closed(path: Path) -> Iterator[None]:
    """Without privileges, and `path` may not be read."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with without_privileges():
            yield
    finally:
        path.chmod(mode)
