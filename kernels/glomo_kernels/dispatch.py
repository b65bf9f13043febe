"""The one place that chooses a backend, and says why not the others.

A backend is a module `glomo_kernels.<op>.<module>` with `forward`, `backward` (of graph_mix also `apply_forward` and
`apply_backward`) and `why_not(*arguments) -> str | None`; `why_not()` without arguments says whether it can be used
here at all. The first backend of the table whose `why_not` is None runs. The environment variable GLOMO_KERNELS
names one backend, which then runs or raises: nothing falls back silently.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType
from typing import Any, NamedTuple

import torch

from glomo_kernels import autocast

log = logging.getLogger("glomo_kernels")


class Backend(NamedTuple):
    name: str
    module: str


REFERENCE = Backend("reference", "reference")
CPP = Backend("cpp", "cpp")
TRITON = Backend("triton", "triton_impl")
CUDA = Backend("cuda", "cuda")

# Fastest first. Every op ends with its reference, which takes all valid input.
TABLE: dict[str, tuple[Backend, ...]] = {
    "affinity_mix": (TRITON, CPP, REFERENCE),
    "affinity_graph": (CUDA, CPP, REFERENCE),
    "graph_mix": (CUDA, CPP, REFERENCE),
    "decoder_loss": (TRITON, CPP, REFERENCE),
}
VARIABLE = "GLOMO_KERNELS"

_logged: set[tuple[str, str]] = set()


class BackendUnavailable(RuntimeError):
    """The forced backend, or every backend, refuses the input; the message lists each with its reason."""


@functools.cache
def _module(op: str, backend: Backend) -> ModuleType:
    _settle()
    return importlib.import_module(f"glomo_kernels.{op}.{backend.module}")


@functools.cache
def _settle() -> None:
    """Call the functions of Intel's library that PyTorch's CPU operators use once, from one thread. Where several
    threads made the first call at once, exp was seen to give one of them half of its digits."""
    for dtype in (torch.float32, torch.float64):
        for function in (torch.exp, torch.log, torch.log1p):
            function(torch.ones(1, dtype=dtype, device="cpu"))


def _table(op: str) -> tuple[Backend, ...]:
    if op not in TABLE:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(TABLE)}")
    return TABLE[op]


def forced(op: str) -> str | None:
    """The name of the backend of `op` that the environment forces, if any."""
    name = os.environ.get(VARIABLE, "")
    names = [backend.name for backend in _table(op)]
    if name and name not in names:
        raise BackendUnavailable(f"{VARIABLE}={name}: {op} has no such backend; it has {', '.join(names)}")
    return name or None


def pick(op: str, *arguments: Any) -> ModuleType:
    """The module of the first backend of `op` that takes `arguments` (those of its `forward`)."""
    only = forced(op)
    refusals: list[tuple[str, str]] = []
    for backend in _table(op):
        if only and backend.name != only:
            continue
        module = _module(op, backend)
        reason = module.why_not(*arguments)
        if reason is None:
            if (op, backend.name) not in _logged:
                _logged.add((op, backend.name))
                skipped = "".join(f"; not {name}: {why}" for name, why in refusals)
                log.info("%s runs on %s%s%s", op, backend.name, f" ({VARIABLE})" if only else "", skipped)
            return module
        refusals.append((backend.name, reason))
    reasons = "; ".join(f"{name}: {why}" for name, why in refusals)
    prefix = f"{VARIABLE}={only}: " if only else ""
    raise BackendUnavailable(f"{prefix}{op} cannot run here: {reasons}")


def backends(op: str) -> dict[str, str | None]:
    """For each backend of `op`, in order of preference: None if it is usable here, else what is missing."""
    return {backend.name: _module(op, backend).why_not() for backend in _table(op)}


def run(op: str, step: str, device: torch.device, chosen_by: tuple[Any, ...], *arguments: Any) -> Any:
    """Call `forward` or `backward` of the backend that takes `chosen_by`, with autocast off."""
    function = getattr(pick(op, *chosen_by), step)
    with autocast.off(device):
        return function(*arguments)
