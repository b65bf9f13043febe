"""Bad shards in a real run of two ranks: an error that names them, or set aside, and resumed exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretrain_samples import TINY, job, losses, rows, run_ranks, weights_hash, without_times, write_text

from glomo_dist.data import Reading, Stream, prepare_text
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.pretrain.steps.feed import Feed
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import DataError, GlomoError, ShardError

pytestmark = pytest.mark.slow

RUNS = {"fails": 0, "aside": 1, "resumed": 1}
WINDOWS = ("random", "packed")
LAST = "the last shard's"


def config(folder: Path, limit: int, readers: int = 0) -> PretrainConfig:
    reading = Reading(readers=readers, cache=str(folder / "cache"), max_bad_shards=limit)
    return dataclasses.replace(TINY, reading=reading, trackers=())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of which the second is damaged."""
    folder = tmp_path_factory.mktemp("feed")
    text = write_text(folder / "text.jsonl", documents=60)
    made = prepare_text([str(text)], folder / "shards", vocab_size=50, shard_bytes=16_384)
    path = made / "shard-00001.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    return made


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    jobs = [job(config(folder, RUNS[name], readers=2), shards, folder / name) for name in ("fails", "aside")]
    jobs += [
        job(dataclasses.replace(config(folder, 1), windows=windows), shards, folder / windows)  # type: ignore[arg-type]
        for windows in WINDOWS
    ]
    (folder / "said").write_text(run_ranks(folder, jobs, 2))
    return folder


def test_the_first_bad_shard_ends_the_run_with_its_name(runs: Path) -> None:
    error = (runs / "fails.error").read_text()
    assert error.startswith("ShardError: shard ") and "shard-00001.tar" in error
    assert not (runs / "fails" / "quarantine.json").exists()


@pytest.mark.parametrize("run", ["aside", *WINDOWS])
def test_a_shard_set_aside_is_recorded_with_its_samples(runs: Path, shards: Path, run: str) -> None:
    value = json.loads((runs / run / "quarantine.json").read_text())
    (entry,) = value["shards"]
    index = resolve(TINY, shards, runs / "x").index
    assert (entry["name"], entry["shard"]) == ("shard-00001.tar", 1)
    assert (entry["samples"], entry["units"]) == (index.shards[1].samples, index.shards[1].tokens)
    assert "shard-00001.tar" in entry["reason"]
    assert len(rows(runs / run)) == TINY.steps and run_folder.finished(runs / run)
    assert (
        f"set aside from step {entry['first_step']} on, 1 of at most 1: shard-00001.tar"
        in (runs / "said").read_text()
    )


ENTRY = {"name": "shard-00001.tar", "shard": 1, "first_step": 1000, "samples": 1, "units": 1, "reason": ""}


def write_record(out: Path, entries: Sequence[Any], version: int = 2) -> None:
    record = {"format": "glomo-quarantine", "version": version, "shards": entries}
    json_files.write_json(out / "quarantine.json", record)


def stream_of(shards: Path, out: Path) -> Stream:
    index = resolve(TINY, shards, out).index
    reading = Reading(readers=0, cache=str(out / "cache"))
    return Stream(index, window=24, seed=4, global_batch=2, reading=reading)


def feed_of(shards: Path, out: Path, limit: int, from_step: int = 0) -> Feed:
    """Of a run with one rank, in this process."""

    def agree_on(error: GlomoError | None) -> None:
        if error is not None:
            raise error

    ranks: Any = SimpleNamespace(
        sum=list, gather=lambda value: [value], from_first=lambda function: function(), agree_on=agree_on
    )
    return Feed(stream_of(shards, out), ranks, from_step, out, limit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_step": float("inf")}, "first_step is inf, no whole number"),  # what JSON makes of 1e400
        ({"first_step": 2.5}, "first_step is 2.5"),
        ({"first_step": "3"}, "first_step is '3'"),
        ({"first_step": 0}, "first_step is 0, no whole number from 1 on"),
        ({"first_step": 10**30}, "first_step is 1000"),
        ({"shard": -1, "name": LAST}, "shard is -1"),
        ({"shard": True}, "shard is True"),
        ({"shard": 99}, "out of range"),
        ({"shard": 0}, "shard 0 is not 'shard-00001.tar'"),
    ],
)
def test_a_damaged_record_is_refused(
    change: dict[str, Any], message: str, shards: Path, tmp_path: Path
) -> None:
    last = resolve(TINY, shards, tmp_path).index.shards[-1].name
    entry = {**ENTRY, **change}
    write_record(tmp_path, [{**entry, "name": last} if entry["name"] == LAST else entry])
    with pytest.raises(
        DataError, match=rf"quarantine\.json: not a list of shards.*{re.escape(message)}.*Delete"
    ):
        feed_of(shards, tmp_path, limit=9)


def test_a_record_with_a_shard_twice_is_refused(shards: Path, tmp_path: Path) -> None:
    write_record(tmp_path, [ENTRY, {**ENTRY, "first_step": 3}])
    with pytest.raises(DataError, match=r"a shard is there twice"):
        feed_of(shards, tmp_path, limit=9)


def test_a_shard_that_is_met_again_before_its_step_counts_once(shards: Path, tmp_path: Path) -> None:
    """As by a run that is resumed from a checkpoint before the shard became bad."""
    write_record(tmp_path, [ENTRY])
    with contextlib.closing(feed_of(shards, tmp_path, limit=1)) as feed:
        while (found := json.loads((tmp_path / "quarantine.json").read_text())["shards"]) == [ENTRY]:
            assert feed.take(False, None) is not None
    assert [one["name"] for one in found] == ["shard-00001.tar"] and found[0]["first_step"] < 1000


def test_the_step_at_which_a_shard_is_set_aside_has_other_samples_instead(
    shards: Path, tmp_path: Path
) -> None:
    """The first without it is the one of the record; no batch is left out or comes twice, also from there on."""
    with contextlib.closing(feed_of(shards, tmp_path, limit=1)) as feed:
        taken = [feed.take(False, None) for _ in range(12)]
        (entry,) = json.loads((tmp_path / "quarantine.json").read_text())["shards"]
        with pytest.raises(GlomoError, match="full"):  # which is why no rank was asked to stop
            feed.take(True, GlomoError("full"))
        assert feed.take(True, None) is None
    begun = entry["first_step"] - 1
    stream = stream_of(shards, tmp_path)
    stream.set_aside(1, begun)
    with contextlib.closing(feed_of(shards, tmp_path, 1, begun)) as feed:
        for step, batch in enumerate(taken):
            assert batch is not None and torch.equal(batch.tokens, stream.batch(step).tokens)
            if step >= begun:
                again = feed.take(False, None)
                assert again is not None and torch.equal(again.tokens, batch.tokens)
    assert 0 < begun < 11


@pytest.mark.parametrize("limit", [1, 2])
def test_every_shard_that_is_set_aside_counts(limit: int, shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    content = bytearray((copy / "shard-00000.tar").read_bytes())
    content[3000] ^= 1
    (copy / "shard-00000.tar").write_bytes(content)
    refused = pytest.raises(
        ShardError, match=r"2 bad shards, reading\.max_bad_shards allows 1: shard .*0000[01]"
    )
    with (
        contextlib.closing(feed_of(copy, tmp_path, limit)) as feed,
        refused if limit == 1 else contextlib.nullcontext(),
    ):
        for _ in range(40):
            feed.take(False, None)
    found = json.loads((tmp_path / "quarantine.json").read_text())["shards"]
    assert len({entry["shard"] for entry in found}) == len(found) == limit
    if limit == 2:
        with pytest.raises(ShardError, match=r"names 2 shards .* reading\.max_bad_shards allows 1"):
            feed_of(copy, tmp_path, 1)


def test_an_error_that_is_no_shards_fault_sets_nothing_aside(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [ShardError("too many open files")]

    def iterate(self: Stream, from_step: int = 0) -> Iterator[str]:
        if errors:
            raise errors.pop()
        yield "a batch"

    monkeypatch.setattr(Stream, "iterate", iterate)
    with pytest.raises(ShardError, match="too many open files"):
        feed_of(shards, tmp_path, limit=1).take(False, None)
    assert not (tmp_path / "quarantine.json").exists()


@pytest.mark.parametrize(("version", "step"), [(1, {"from_step": 4}), (2, {"first_step": 5})])
def test_the_step_of_a_record(
    version: int, step: dict[str, int], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 5 of log.jsonl is the first without the shard; an old record counts from 0, as streams do."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(Stream, "set_aside", lambda _, shard, from_step: found.append((shard, from_step)))
    entry = {key: value for key, value in ENTRY.items() if key != "first_step"}
    write_record(tmp_path, [{**entry, **step}], version)
    feed_of(shards, tmp_path, limit=1).close()
    assert found == [(1, 4)]


def test_resumed_with_a_shard_set_aside(runs: Path, shards: Path, tmp_path: Path) -> None:
    """From the first checkpoint, with the record and without it: what was bad is bad again, at the same step.

    "gone": by now the shard is not there at all.
    """
    jobs = []
    gone = shutil.copytree(shards, tmp_path / "shards")
    (gone / "shard-00001.tar").unlink()
    for name in ("with", "without", "gone", "less"):
        copy = tmp_path / name
        shutil.copytree(runs / "aside", copy)
        shutil.rmtree(copy / "model")
        newest = max((copy / "checkpoints").glob("step-*"))
        shutil.rmtree(newest)
        if name in ("without", "gone"):
            (copy / "quarantine.json").unlink()
        data = gone if name == "gone" else shards
        jobs.append(job(config(tmp_path, 0 if name == "less" else 1), data, copy))
    run_ranks(tmp_path, jobs, 2)
    for name in ("with", "without", "gone"):
        assert losses(tmp_path / name) == losses(runs / "aside")
        assert [without_times(r) for r in rows(tmp_path / name)] == [
            without_times(r) for r in rows(runs / "aside")
        ]
        assert weights_hash(tmp_path / name) == weights_hash(runs / "aside")
    assert "max_bad_shards allows 0" in (tmp_path / "less.error").read_text()
