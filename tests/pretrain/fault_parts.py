"""The parts of the long set of fault tests (faults.py): what each attacks, and the row of the table that it gives."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fault_runs
from fault_runs import SHORT, assert_close, assert_same, with_stage
from nursery import Nursery
from pretrain_samples import rank_process, start_program, steps_done, temporary_files, wait_for

from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.output import checkpoint
from glomo_dist.runtime.errors import Interrupted, RankDied, RankHung


@dataclass
class Set:
    """What the parts need. kills: per ZeRO stage; save_kills: during saving."""

    ranks: Nursery
    shards: Path
    folder: Path
    kills: int
    save_kills: int
    draw: random.Random
    references: dict[str, Path] = dataclasses.field(default_factory=dict)

    def reference(self, config: PretrainConfig) -> Path:
        """The run that nothing happened to."""
        key = json.dumps(
            [config.zero_stage, config.precision, config.steps, config.checkpoint_every, config.micro_batch]
        )
        if key not in self.references:
            out = self.folder / f"reference{len(self.references)}"
            self.references[key] = self.ranks.run(config, self.shards, out)
        return self.references[key]

    def new(self, name: str) -> Path:
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path


@dataclass(frozen=True)
class Row:
    promise: str
    attack: str
    times: int
    result: str


def kills(s: Set, stage: int, precision: str = "fp32") -> Row:
    config = with_stage(SHORT, stage, steps=40, checkpoint_every=5, precision=precision)
    run, reference = s.new(f"kills{stage}{precision}"), s.reference(config)
    seconds = fault_runs.kill_at_random_steps(s.ranks, config, s.shards, run, s.kills, s.draw, reference)
    return Row(
        f"ZeRO {stage}, {precision}: a killed run continues to the bit",
        f"SIGKILL to a random rank at a random moment of a run of {config.steps} steps, continued each time",
        s.kills,
        f"losses and weights identical; the other rank ended after {max(seconds):.1f} s at most",
    )


def kills_while_saving(s: Set) -> Row:
    config = dataclasses.replace(SHORT, steps=s.save_kills + 20, checkpoint_every=1)
    run, reference = s.new("saving"), s.reference(config)
    partial = fault_runs.kill_while_saving(s.ranks, config, s.shards, run, s.save_kills, s.draw, reference)
    return Row(
        "a checkpoint is whole or not there",
        "SIGKILL to a random rank at a random moment while one is being written",
        s.save_kills,
        f"losses and weights identical ({partial} kills left a part of a checkpoint, which was ignored)",
    )


def kills_at_every_file_operation(s: Set, rank: int) -> Row:
    config = dataclasses.replace(SHORT, steps=6, checkpoint_every=2, keep_checkpoints=1)
    total = fault_runs.count_file_operations(s.ranks, config, s.shards, s.new("count"), rank)
    for number in range(1, total + 1):
        run = s.new("operation")
        fault_runs.kill_at_file_operation(s.ranks, config, s.shards, run, rank, number)
        assert_same(run, s.reference(config))
    return Row(
        "a checkpoint is whole or not there",
        f"SIGKILL to rank {rank} before each single file operation of three saves",
        total,
        "losses and weights identical",
    )


def full_disk(s: Set, rank: int) -> Row:
    config = dataclasses.replace(SHORT, steps=6, checkpoint_every=2)
    total = fault_runs.count_file_operations(s.ranks, config, s.shards, s.new("count"), rank)
    chosen = range(1, total + 1, 2)
    done = 0
    for number in chosen:
        run = s.new("full")
        try:
            fault_runs.fill_disk_at(s.ranks, config, s.shards, run, rank, number)
        except AssertionError as e:
            if "[0, 0]" not in str(e):  # what remained to be done needed no space
                raise
            continue
        assert_same(run, s.reference(config))
        done += 1
    return Row(
        "a full disk leaves the old checkpoint and is named",
        f"ENOSPC on rank {rank} from every second file operation of three saves on",
        done,
        "exit code 2 on both ranks, path named, older checkpoints verify; continued identically with space",
    )


def small_disk(s: Set) -> Row:
    """A real full disk: a small tmpfs; root only."""
    if not fault_runs.is_root() or not shutil.which("mount"):
        return Row(
            "a full disk leaves the old checkpoint and is named", "a small tmpfs", 0, "skipped: not root"
        )
    config, done = dataclasses.replace(SHORT, steps=30, checkpoint_every=2, keep_checkpoints=8), 0
    reference = s.reference(config)
    for size in (100, 200, 300, 450, 600):
        disk = s.new(f"disk{size}")
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)], check=True)
        try:
            group = s.ranks.start(config, s.shards, disk / "run")
            group.log = s.folder / f"disk{size}.log"
            codes = group.wait()
            assert codes == [2, 2], codes
            for kept in checkpoint.existing(disk / "run" / "checkpoints"):
                checkpoint.verify(kept)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            s.ranks.run(config, s.shards, disk / "run")
            assert_same(disk / "run", reference)
            done += 1
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    return Row(
        "a full disk leaves the old checkpoint and is named", "tmpfs of 100 to 600 KB as the run folder's disk",
        done, "exit code 2 on both ranks; older checkpoints verify; continued identically on a larger disk",
    )  # fmt: skip


def hangs(s: Set, how: str) -> Row:
    seconds = []
    for _ in range(3):
        run = s.new("hang")
        seconds.append(fault_runs.hang(s.ranks, SHORT, s.shards, run, how, timeout=4.0))
        assert_same(run, s.reference(SHORT))
    what = {
        "stop one": "SIGSTOP to a rank", "stop all": "SIGSTOP to all ranks",
        "data": "the read of a batch never returns", "step": "a rank never joins the collective of a step",
        "lock": "a call never returns and holds the interpreter lock",
        "unwatched": "SIGKILL to the watchdog of a rank, some steps later SIGSTOP to the rank",
    }[how]  # fmt: skip
    return Row(
        "a hung rank is shown and ended", what, len(seconds),
        f"stacks of both ranks printed; ended after {max(seconds):.1f} s (timeout 4 s); continued identically",
    )  # fmt: skip


def signals(s: Set) -> Row:
    seconds = []
    for stage in range(4):
        config = with_stage(SHORT, stage)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            for rank in (0, 1):
                run = s.new("signal")
                at = s.draw.randint(1, SHORT.steps - 3)
                seconds.append(fault_runs.stop_by_signal(s.ranks, config, s.shards, run, rank, number, at))
                assert_same(run, s.reference(config))
    return Row(
        f"SIGTERM, SIGUSR1: all ranks save and end with {Interrupted.exit_code}",
        "to one rank, at a random step, in every ZeRO stage",
        len(seconds),
        f"after {max(seconds):.1f} s at most; the last step done is saved; continued identically",
    )


def other_ranks(s: Set) -> Row:
    worst, times = 0.0, 0
    for stage in range(4):
        for precision in ("fp32", "bf16") if stage else ("fp32",):
            config = with_stage(SHORT, stage, precision=precision)
            for worlds, at in (([2, 1], [5]), ([1, 2], [5]), ([2, 1, 2, 4], [3, 5, 9])):
                run = s.new("ranks")
                fault_runs.change_ranks(s.ranks, config, s.shards, run, worlds, at)
                # with bfloat16 weights the order of a sum moves a loss by up to 2^-8 of a term
                allowed = 1e-5 if precision == "fp32" else 1e-2
                found = assert_close(run, s.reference(config), allowed)
                worst = max(worst, found) if precision == "fp32" else worst
                times += 1
    return Row(
        "another number of ranks: no sample lost or repeated, loss within 1e-5",
        "2 to 1, 1 to 2, 2 to 1 to 2 to 4 ranks, each stage and precision", times,
        f"units and targets of every step equal; loss of fp32 within {worst:.1e}",
    )  # fmt: skip


def launcher(s: Set) -> Row:
    """The program as users start it, with torchrun below; signals and kills at each of its processes."""
    config = dataclasses.replace(SHORT, steps=40, checkpoint_every=5, hang_timeout=5.0)
    reference, times, slowest = s.reference(config), 0, 0.0
    cases: list[tuple[str, int, int]] = [
        ("rank", signal.SIGKILL, RankDied.exit_code), ("rank", signal.SIGSTOP, RankHung.exit_code),
        ("rank", signal.SIGTERM, Interrupted.exit_code), ("launcher", signal.SIGTERM, Interrupted.exit_code),
        ("launcher", signal.SIGUSR1, Interrupted.exit_code), ("launcher", signal.SIGKILL, -signal.SIGKILL),
    ]  # fmt: skip
    for who, number, code in cases:
        folder = s.new("launcher")
        folder.mkdir()
        run = start_program(folder, config, s.shards)
        wait_for(lambda f=folder, r=run: steps_done(f / "run") > 10 or r.poll() is not None)
        os.kill(run.pid if who == "launcher" else rank_process(run.pid, 1), number)
        began = time.monotonic()
        found = run.wait(60)
        slowest = max(slowest, time.monotonic() - began)
        assert found == code, (who, number, found, (folder / "stderr").read_text()[-3000:])
        again = start_program(folder, config, s.shards)
        if number == signal.SIGKILL and who == "launcher":  # its ranks save and end by themselves
            while again.wait(60) == 2:
                again = start_program(folder, config, s.shards)
        assert again.wait(120) == 0, (folder / "stderr").read_text()[-3000:]
        assert_same(folder / "run", reference)
        assert temporary_files(folder) == [], "temporary files are left"
        times += 1
    return Row(
        "the documented exit codes; the same command continues",
        "SIGKILL, SIGSTOP, SIGTERM or SIGUSR1 to a rank or to the launcher",
        times, f"as documented, within {slowest:.1f} s (hang timeout 5 s); no temporary files left",
    )  # fmt: skip


PARTS: dict[str, Callable[[Set], Row]] = {
    **{f"kills-zero{stage}": lambda s, stage=stage: kills(s, stage) for stage in range(4)},
    "kills-bf16": lambda s: kills(s, 2, "bf16"),
    "saving": kills_while_saving,
    "operations-rank0": lambda s: kills_at_every_file_operation(s, 0),
    "operations-rank1": lambda s: kills_at_every_file_operation(s, 1),
    "full-rank0": lambda s: full_disk(s, 0),
    "full-rank1": lambda s: full_disk(s, 1),
    "small-disk": small_disk,
    **{
        f"hang-{how.replace(' ', '-')}": lambda s, how=how: hangs(s, how)
        for how in ("stop one", "stop all", "data", "step", "lock", "unwatched")
    },
    "signals": signals,
    "ranks": other_ranks,
    "launcher": launcher,
}  # fmt: skip
