"""What GLOMO_KERNELS asks for, looked at before any work begins."""

from __future__ import annotations

from glomo_kernels import BackendUnavailable, dispatch

from glomo_dist.runtime.errors import ConfigError


def why_not_forced(op: str) -> str | None:
    """Why the backend that GLOMO_KERNELS names cannot run `op` here; None if it can, or none is named."""
    try:
        name = dispatch.forced(op)
    except BackendUnavailable as e:
        return str(e)
    reason = dispatch.backends(op)[name] if name else None
    return reason and f"{dispatch.VARIABLE}={name}: {op} cannot run here: {reason}"


def require(*ops: str) -> None:
    """ConfigError where GLOMO_KERNELS names a backend that cannot run one of these ops here."""
    for op in ops:
        if reason := why_not_forced(op):
            raise ConfigError(
                f"{reason}. Unset {dispatch.VARIABLE}, or see `glomo doctor` for what can be used."
            )
