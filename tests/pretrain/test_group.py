"""A group of ranks: what they sum and agree on, and how they find each other after a restart."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from glomo_dist.pretrain.ranks import group
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.runtime.errors import GlomoError


@pytest.fixture
def alone() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    group.leave()
    assert not dist.is_initialized()


def test_sums_are_exact_and_errors_are_raised_everywhere(alone: Ranks) -> None:
    assert alone.sum([2**53 - 1, 0.1, True]) == [2**53 - 1, 0.1, 1]
    assert alone.from_first(lambda: 5) == alone.on_each(lambda: 5) == 5 and alone.gather("x") == ["x"]
    alone.agree_on(None)

    def fail() -> None:
        raise GlomoError("no")

    for how in (alone.from_first, alone.on_each, lambda function: alone.agree_on(GlomoError("no"))):
        with pytest.raises(GlomoError, match="no") as e:
            how(fail)
        assert e.value.everywhere


def test_the_first_rank_that_has_an_error_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [None, GlomoError("of rank 1"), GlomoError("of rank 2")]
    monkeypatch.setattr(Ranks, "gather", lambda self, value: others)
    with pytest.raises(GlomoError, match="of rank 1"):
        Ranks(0, 3, torch.device("cpu")).agree_on(None)


def test_ranks_that_are_started_again_do_not_meet_those_before() -> None:
    """torchrun keeps its store, and with it the word of the first start that all were there."""
    store = dist.HashStore()
    store.set("glomo/start", "before")
    store.set("glomo/before/drawn", json.dumps({"1": "x", "2": "y"}))
    found: dict[int, Any] = {}

    def start(rank: int) -> None:
        found[rank] = group._fresh(store, rank, 3)
        found[rank].set(f"from{rank}", "here")

    threads = [threading.Thread(target=start, args=(rank,), daemon=True) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for mine in found.values():
        mine.wait([f"from{rank}" for rank in range(3)], timedelta(seconds=1))
    assert sorted(found) == [0, 1, 2]
