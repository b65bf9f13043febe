"""Seconds by part, on the host and in the queue of a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from glomo_dist.pretrain.steps.clock import Clock


class Queue:
    """Stands for a GPU: `now` seconds have passed in its queue; so often it was waited for, and until then."""

    now, waits, done = 0.0, 0, -1.0

    def event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, queue: Queue) -> None:
        self.queue, self.at = queue, float("nan")

    def record(self) -> None:
        self.at = self.queue.now

    def synchronize(self) -> None:
        self.queue.waits += 1
        self.queue.done = self.at

    def elapsed_time(self, end: Event) -> float:
        assert end.at <= self.queue.done, "not yet done"
        return 1000 * (end.at - self.at)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(torch.cuda, "Event", queue.event)
    return queue


def test_on_a_gpu_parts_are_timed_in_its_queue_and_only_take_waits(queue):
    clock = Clock(torch.device("cuda"))
    for part, seconds in [("data", 1.0), ("forward", 2.0), ("backward", 4.0), ("forward", 8.0)]:
        queue.now += seconds
        clock.lap(part)
    assert queue.waits == 0
    assert clock.take() == pytest.approx({"data": 1.0, "forward": 10.0, "backward": 4.0})
    assert queue.waits == 1
    queue.now += 16.0
    clock.lap("optimizer")
    assert clock.take() == pytest.approx({"optimizer": 16.0}) and clock.take() == {}


def test_on_the_host_the_parts_are_all_of_the_time():
    began, clock = time.perf_counter(), Clock(torch.device("cpu"))
    for part in ["data", "forward", "data"]:
        time.sleep(0.02)
        clock.lap(part)
    seconds, all_of_it = clock.take(), time.perf_counter() - began
    assert seconds["data"] >= 0.04 and seconds["forward"] >= 0.02
    assert sum(seconds.values()) <= all_of_it
    clock.lap("data")
    assert clock.take().keys() == {"data"}


def test_every_lap_is_a_sign_of_life():
    told: list[tuple[str, int]] = []
    clock = Clock(torch.device("cpu"), lambda part, step: told.append((part, step)))
    clock.lap("data")
    clock.step = 7
    clock.lap("forward")
    assert told == [("data", 0), ("forward", 7)]
