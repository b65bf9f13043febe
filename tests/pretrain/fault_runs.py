"""What is done to a run, and what must come of it: shared by the short tests and the long set (faults.py)."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from nursery import Group, Nursery
from pretrain_samples import PLAIN, rows, steps_done, weights_hash, without_times

from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.output import checkpoint
from glomo_dist.runtime.errors import Interrupted

SHORT = dataclasses.replace(PLAIN, steps=12, checkpoint_every=2, hang_timeout=60.0)
DIED_SECONDS, STOP_SECONDS = 10.0, 30.0


def with_stage(config: PretrainConfig, stage: int, **changes: Any) -> PretrainConfig:
    return dataclasses.replace(config, zero_stage=stage, **changes)


def assert_same(run: Path, reference: Path) -> None:
    """The same losses, norms and statistics of each step to the bit, and the same weights."""
    ours, theirs = rows(run), rows(reference)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert without_times(our) == without_times(their), f"{run}: step {our['step']} differs"
    assert weights_hash(run) == weights_hash(reference), f"{run}: other weights than {reference}"
    assert not list((run / "checkpoints").glob(".*")), "nothing half-written is left"


def assert_close(run: Path, reference: Path, relative: float = 1e-5) -> float:
    """On another number of ranks: the same samples, losses within `relative`. Returns the largest difference."""
    ours, theirs = rows(run), rows(reference)
    assert [(r["step"], r["targets"], r["units"]) for r in ours] == [
        (r["step"], r["targets"], r["units"]) for r in theirs
    ]
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(ours, theirs, strict=True))
    assert worst <= relative, f"{run}: loss differs by {worst:.1e}"
    return worst


def log_of(run: Path) -> int:
    """A number for the file log.jsonl: each start of a run begins a new one (0: there is none)."""
    log = run / "log.jsonl"
    return log.stat().st_ino if log.exists() else 0


def wait_for_step(group: Group, run: Path, step: int, before: int = 0) -> bool:
    """False if the run ended before. before: `log_of` the run before it was started."""
    until = time.monotonic() + 120
    while steps_done(run) < step or log_of(run) == before:
        if not group.running:
            return False
        assert time.monotonic() < until, group.log.read_text()[-4000:]
        time.sleep(0.001)
    return True


def killed(
    group: Group,
    rank: int,
    nursery: Nursery,
    config: PretrainConfig,
    shards: Path,
    run: Path,
    reference: Path,
) -> float | None:
    """SIGKILL to a rank. Seconds until all ranks have ended; None if the run was finished by then.

    A finished run must be equal to the reference, and is removed so that a new one can begin.
    """
    group.kill(rank)
    began = time.monotonic()
    codes = group.wait(60)
    seconds = time.monotonic() - began
    if (run / "model").exists():
        nursery.run(config, shards, run)
        assert_same(run, reference)
        shutil.rmtree(run)
        return None
    assert all(codes), f"a rank took the death of another for success: {codes}"
    assert seconds <= DIED_SECONDS, f"{seconds:.1f} s after the death of a rank"
    return seconds


def kill_at_random_steps(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, kills: int, draw: random.Random,
    reference: Path,
) -> list[float]:  # fmt: skip
    """SIGKILL to a random rank at a random moment, `kills` times, each time continued; then to the end.

    Where a run ends before its kill, another is begun; each must be equal to `reference`.
    Returns the seconds until the other rank had ended, too.
    """
    seconds: list[float] = []
    while len(seconds) < kills:
        before = log_of(run)
        group = nursery.start(config, shards, run)
        newest = checkpoint.existing(run / "checkpoints")
        done = (checkpoint.step_of(newest[0]) or 0) if newest else 0
        target = done + draw.randint(1, max(1, min(config.checkpoint_every + 3, config.steps - done - 1)))
        if draw.random() < 0.1:
            time.sleep(draw.uniform(0, 1.5))  # while it starts
        else:
            wait_for_step(group, run, target, before)
            time.sleep(draw.uniform(0, 0.03))
        took = killed(group, draw.randrange(2), nursery, config, shards, run, reference)
        seconds += [] if took is None else [took]
    nursery.run(config, shards, run)
    assert_same(run, reference)
    return seconds


def kill_while_saving(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, kills: int, draw: random.Random,
    reference: Path,
) -> int:  # fmt: skip
    """The same with a checkpoint every step, at a random moment of a save. Returns how many left a part of one."""
    config, partial, done = dataclasses.replace(config, checkpoint_every=1), 0, 0
    folder = run / "checkpoints"
    while done < kills:
        before = log_of(run)
        group = nursery.start(config, shards, run)
        while group.running and (not list(folder.glob(".step-*")) or log_of(run) == before):
            pass
        time.sleep(draw.uniform(0, 0.04))
        if killed(group, draw.randrange(2), nursery, config, shards, run, reference) is not None:
            partial += bool(list(folder.glob(".step-*")))
            done += 1
    nursery.run(config, shards, run)
    assert_same(run, reference)
    return partial


def count_file_operations(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, rank: int
) -> int:
    """How many a run does to its checkpoints on `rank`."""
    group = nursery.start(config, shards, run, fault={"kind": "count", "rank": rank})
    assert group.wait() == [0, 0], group.log.read_text()[-4000:]
    shutil.rmtree(run)
    return max(map(int, re.findall(r"file operation (\d+):", group.log.read_text())))


def kill_at_file_operation(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, rank: int, number: int
) -> None:
    """SIGKILL just before the `number`-th file operation on the checkpoints, then continued to the end."""
    group = nursery.start(config, shards, run, fault={"kind": "kill_at", "rank": rank, "number": number})
    codes = group.wait()
    assert codes[rank] == -signal.SIGKILL and all(codes), (codes, group.log.read_text()[-3000:])
    nursery.run(config, shards, run)


def fill_disk_at(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, rank: int, number: int
) -> None:
    """No space from the `number`-th file operation on; what was there stays whole; with space again it goes on."""
    group = nursery.start(config, shards, run, fault={"kind": "full_at", "rank": rank, "number": number})
    codes, said = group.wait(), group.log.read_text()
    assert codes == [2, 2], (codes, said[-3000:])
    assert "No space left on device" in said and str(run / "checkpoints") in said, said[-3000:]
    for kept in checkpoint.existing(run / "checkpoints"):
        checkpoint.verify(kept)
    nursery.run(config, shards, run)


def hang(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, how: str, timeout: float = 4.0
) -> float:
    """One rank hangs (or all, "stop all"); seconds until the run had ended. Then continued to the end.

    "unwatched": its watchdog is killed first.
    """
    config = dataclasses.replace(config, hang_timeout=timeout)
    inside = {
        "data": "hang_data", "step": "hang_step", "lock": "hang_lock", "stop one": "stop_step",
        "unwatched": "unwatched",
    }.get(how)  # fmt: skip
    fault = {"kind": inside, "rank": 1, "step": 4} if inside else None
    group = nursery.start(config, shards, run, fault=fault)
    assert wait_for_step(group, run, 3), group.log.read_text()[-3000:]
    if how == "unwatched":
        assert wait_for_step(group, run, 6), (
            "it goes on without its watchdog\n" + group.log.read_text()[-3000:]
        )
    if how == "stop all":
        for rank in (0, 1):
            group.kill(rank, signal.SIGSTOP)
    began = time.monotonic()
    codes = group.wait(timeout + 60)
    seconds = time.monotonic() - began
    said = group.log.read_text()
    assert all(codes) and seconds <= timeout + 15, (codes, seconds, said[-3000:])
    for rank in (0, 1):
        assert re.search(rf"rank {rank} \(process \d+ on .*\): stacks:\n.*File ", said, re.DOTALL), said[
            -6000:
        ]
    if how == "unwatched":
        # Another one takes its place: it, and nobody else, shows the stacks of rank 1.
        replaced = r"watchdog of rank 1 was killed.*watchdog: rank 1 .*: stacks:\n"
        assert re.search(replaced, said, re.DOTALL), said[-6000:]
    nursery.run(config, shards, run)
    return seconds


def stop_by_signal(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, rank: int, number: int, at: int
) -> float:
    """A signal to one rank, again and again: all save and end with the documented code. Then continued to the end."""
    group = nursery.start(config, shards, run)
    assert wait_for_step(group, run, at), group.log.read_text()[-3000:]
    began = time.monotonic()
    while group.running and time.monotonic() < began + STOP_SECONDS:
        group.kill(rank, number)
        time.sleep(0.01)
    codes = group.wait(60)
    seconds = time.monotonic() - began
    assert codes == [Interrupted.exit_code] * 2 and seconds <= STOP_SECONDS, (codes, seconds)
    newest = checkpoint.existing(run / "checkpoints")[0]
    assert checkpoint.verify(newest)["step"] == steps_done(run), "the last finished step is saved"
    nursery.run(config, shards, run)
    return seconds


def change_ranks(
    nursery: Nursery, config: PretrainConfig, shards: Path, run: Path, worlds: list[int], at: list[int]
) -> None:
    """Begin on worlds[0] ranks, stop after step at[0], go on with worlds[1] ranks, and so on."""
    for world, step in zip(worlds, at, strict=False):
        before = log_of(run)
        group = nursery.start(config, shards, run, world)
        assert wait_for_step(group, run, step, before), group.log.read_text()[-3000:]
        group.kill(0)
        group.wait()
    nursery.run(config, shards, run, worlds[-1])


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
