"""What GLOMO_KERNELS asks for, looked at before any work begins."""

from __future__ import annotations

import os
from typing import Any

from glomo_dist.runtime.errors import ConfigError

VARIABLE = "GLOMO_KERNELS"  # of glomo_kernels.dispatch


def is_forced() -> bool:
    """Whether GLOMO_KERNELS names a backend."""
    return bool(os.environ.get(VARIABLE))


def why_not_forced(op: str, *arguments: Any) -> str | None:
    """Why the backend that GLOMO_KERNELS names cannot run `op` here; None if it can, or none is named.

    arguments: like those that its forward will get, where they are known.
    """
    if not is_forced():
        return None  # and the kernels, with PyTorch, need not be imported to say so
    from glomo_kernels import BackendUnavailable, dispatch

    try:
        if dispatch.forced(op):
            dispatch.pick(op, *arguments)
    except BackendUnavailable as e:
        return str(e)
    return None


def require(op: str, *arguments: Any) -> None:
    """ConfigError where GLOMO_KERNELS names a backend that cannot run `op` here, see `why_not_forced`."""
    if reason := why_not_forced(op, *arguments):
        raise ConfigError(f"{reason}. Unset {VARIABLE}, or see `glomo doctor` for what can be used.")
