"""The kinds of layers and of fusion that a job names. Without PyTorch, as a job is checked before that is loaded."""

from __future__ import annotations

from typing import Literal

Cell = Literal["gru", "lstm", "bag"]
FusionKind = Literal["concat", "gate"]
