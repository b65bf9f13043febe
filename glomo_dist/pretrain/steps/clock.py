"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Seconds spent per named part since the last `take`; every lap is a sign of life, too.

    On a GPU they are of its queue: a lap leaves a mark there and waits for nothing, so the host can go on asking for
    work; `take` waits for the last mark. What the host does meanwhile counts where the queue runs empty.
    beat(part, step): told of each part that is done (on a GPU: asked for).  step: the one that is being worked on.
    """

    def __init__(self, device: torch.device, beat: Callable[[str, int], None] | None = None) -> None:
        self.step = 0
        self._on_gpu, self._beat = device.type == "cuda", beat
        self._parts: list[str] = []
        self._marks = [self._mark()]  # the end of each part, behind the end of what was taken before

    def lap(self, part: str) -> None:
        """Book the time since the previous lap under `part`."""
        self._parts.append(part)
        self._marks.append(self._mark())
        if self._beat is not None:
            self._beat(part, self.step)

    def take(self) -> dict[str, float]:
        """The seconds by part, which begin at 0 again."""
        if self._on_gpu:
            self._marks[-1].synchronize()
        seconds: dict[str, float] = {}
        for part, (begin, end) in zip(self._parts, pairwise(self._marks), strict=True):
            took = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            seconds[part] = seconds.get(part, 0.0) + took
        self._parts, self._marks = [], self._marks[-1:]
        return seconds

    def _mark(self) -> Any:
        """Now, in seconds; on a GPU a mark in its queue."""
        if not self._on_gpu:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark
