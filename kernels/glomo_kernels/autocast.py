"""torch's autocast, which would turn float32 products inside the ops into bfloat16 ones."""

from __future__ import annotations

import contextlib

import torch


def enabled(device: torch.device) -> bool:
    """Whether autocast is on for this kind of device."""
    # "meta" has none. Not torch.amp.is_autocast_available: torch.compile of torch 2.11 cannot trace it
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def off(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it products stay in the dtype of their factors."""
    return torch.autocast(device.type, enabled=False) if enabled(device) else contextlib.nullcontext()
