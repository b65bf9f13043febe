"""Values given in Python are held to a config's types as those of a file are."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from glomo_dist.evaluate.plan import EvaluationPlan
from glomo_dist.model import GlomoConfig
from glomo_dist.pretrain.settings.config import PretrainConfig
from glomo_dist.runtime.config import check_fields, check_least, from_dict, to_dict
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.transfer.job import FinetuneJob
from glomo_dist.transfer.readers.head import Fusion


@dataclass(frozen=True)
class Sample:
    number: int = 1
    share: float = 0.5
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    inner: Sample | None = None

    def __post_init__(self) -> None:
        check_fields(self, "sample.")


def test_what_python_and_numpy_call_the_same_is_taken() -> None:
    sample = Sample(np.int64(3), np.float32(0.25), "b", [1, 2], [Path("x/y")], Sample())  # type: ignore[arg-type]
    assert sample == Sample(3, 0.25, "b", (1.0, 2.0), ("x/y",), Sample())
    assert [type(x) for x in (sample.number, sample.share, *sample.pair, *sample.names)] == [
        int, float, float, float, str,
    ]  # fmt: skip
    assert from_dict(Sample, to_dict(sample)) == sample


@dataclass(frozen=True)
class Numbers:
    rows: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        check_least(self, "numbers.", 1, "rows", "most")
        check_least(self, "numbers.", 1, "most", most=2000)


def test_numbers_below_the_least_and_above_the_most_are_named() -> None:
    assert Numbers().most is None and Numbers(1, 1).most == 1
    with pytest.raises(ConfigError, match=r"numbers.rows must be at least 1, got 0\."):
        Numbers(0, 0)
    with pytest.raises(ConfigError, match=r"numbers.most must be at least 1 or none, got -2\."):
        Numbers(1, -2)
    assert Numbers(3000, 2000).most == 2000
    with pytest.raises(ConfigError, match=r"numbers.most must be at most 2,000 or none, got 2001\."):
        Numbers(1, 2001)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("number", 1.5, "sample.number must be int, got 1.5"),
        ("number", True, "sample.number must be int, got True"),
        ("number", "3", "sample.number must be int, got '3'"),
        ("share", "1e-3", "sample.share must be float, got '1e-3'"),
        ("kind", "c", "sample.kind must be one of a, b, got 'c'"),
        ("pair", (1.0,), r"sample.pair must be a list of 2, got \[1.0\]"),
        ("pair", 1.0, "sample.pair must be a list, got 1.0"),
        ("names", "xyz", "sample.names must be a list, got 'xyz'"),
        ("names", [3], "sample.names must be str, got 3"),
        ("inner", 3, "sample.inner: expected an object with the keys of Sample, got 3"),
    ],
)
def test_what_they_do_not_is_an_error(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sample(**{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlomoConfig(vocab_size=9, sparsity="thresold"), "model.sparsity must be one of threshold, "),  # type: ignore[arg-type]
        (lambda: GlomoConfig(vocab_size=9, layers=1.5), "model.layers must be int, got 1.5"),  # type: ignore[arg-type]
        (lambda: PretrainConfig(GlomoConfig(9), steps="5"), "steps must be int, got '5'"),  # type: ignore[arg-type]
        (lambda: PretrainConfig(GlomoConfig(9), betas=(0.9,)), r"betas must be a list of 2, got \[0.9\]"),  # type: ignore[arg-type]
        (lambda: FinetuneJob("sst2", reader="bagg"), "job: reader must be one of gru, lstm, bag, got 'bagg'"),  # type: ignore[arg-type]
        (lambda: FinetuneJob("sst2", epochs=1.5), "job: epochs must be int, got 1.5"),  # type: ignore[arg-type]
        (lambda: FinetuneJob("sst2", threads=4097), "job: threads must be at most 4,096, got 4097"),
        (lambda: EvaluationPlan("sst2", {"none": "none"}), "plan: tasks must be a list, got 'sst2'"),  # type: ignore[arg-type]
        # in the file of a plan, where the word on the command line is `all`
        (
            lambda: EvaluationPlan(("sst2",), {"none": "none"}, train_sizes=("all",)),  # type: ignore[arg-type]
            r"plan: train_sizes must be int or none, got 'all'\. None is null in a file\.",
        ),
        (lambda: Fusion("concta", 3, 2), "fusion must be one of concat, gate, got 'concta'"),  # type: ignore[arg-type]
    ],
)
def test_every_config_does(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_types_of_a_class_are_looked_up_once(monkeypatch):
    """They were for each object, which took 4 of 5 parts of the time of a plan of 10,000 jobs."""
    looked_up, found = [], typing.get_type_hints
    monkeypatch.setattr("typing.get_type_hints", lambda cls: looked_up.append(cls) or found(cls))

    @dataclass(frozen=True)
    class Counted:
        count: int = 1

        def __post_init__(self):
            check_fields(self, "")

    assert [from_dict(Counted, {"count": n}).count for n in range(3)] == [0, 1, 2]
    assert looked_up == [Counted]
