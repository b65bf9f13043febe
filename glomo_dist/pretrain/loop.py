"""The loop over optimizer steps: data, step, validation, hooks, checkpoints, the model at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glomo_dist.data import Batch, ShardIndex, Stream, Windows
from glomo_dist.model import Glomo
from glomo_dist.pretrain.output import checkpoint, run_folder
from glomo_dist.pretrain.output.claim import Claim
from glomo_dist.pretrain.output.hooks import Hook, open_hooks
from glomo_dist.pretrain.output.saving import Export, Saver, exporter
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.pretrain.ranks.stopping import Stopping
from glomo_dist.pretrain.settings.config import PretrainConfig
from glomo_dist.pretrain.settings.resolve import ResolvedRun
from glomo_dist.pretrain.settings.schedule import exhausted, learning_rate
from glomo_dist.pretrain.steps.activations import checkpoint_activations
from glomo_dist.pretrain.steps.clock import Clock
from glomo_dist.pretrain.steps.engine import build_engine, set_learning_rate
from glomo_dist.pretrain.steps.feed import Feed
from glomo_dist.pretrain.steps.loop_state import LoopState
from glomo_dist.pretrain.steps.step import StepResult, train_step, valid_loss
from glomo_dist.runtime import files
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import GlomoError, Interrupted
from glomo_dist.runtime.fingerprint import code_version, derive_seed
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.words import counted

PARTS = ("data", "forward", "backward", "optimizer", "valid", "checkpoint", "other")  # of a step's time


def train(job: ResolvedRun, ranks: Ranks, claim: Claim, clock: Clock, stopping: Stopping) -> None:
    """Train from the newest good checkpoint of `job.out` (or from nothing) to the end, on every rank."""
    config = job.config
    torch.manual_seed(derive_seed(config.seed, "weights"))
    model = Glomo(config.model)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    engine = build_engine(model, config, ranks)
    folder = job.out / run_folder.CHECKPOINTS
    state = LoopState()
    found = ranks.from_first(lambda: checkpoint.find_newest(folder))
    if found is not None:
        path, manifest = found
        checkpoint.load(engine, path, manifest, ranks)
        state = LoopState.from_json(manifest["state"])
        if ranks.first:
            say(f"continuing {job.out} from step {state.step} of {config.steps}{_moved(manifest, ranks)}")
    stream = _stream(config, job.index, ranks, config.windows, config.seed)
    saver = Saver(
        folder, ranks, config.keep_checkpoints, _exporter(job), claim.check,
        beat=lambda: clock.lap("checkpoint"),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        hooks: list[Hook] = []  # on rank 0
        ranks.from_first(lambda: hooks.extend(open_hooks(job, state.step, stack)))
        try:
            limit = config.reading.max_bad_shards
            feed = stack.enter_context(contextlib.closing(Feed(stream, ranks, state.step, job.out, limit)))
            _Loop(job, ranks, engine, stream, feed, state, hooks, saver, clock, stopping).run()
        except GlomoError as e:
            if e.everywhere:  # what is being written is worth finishing, and has to be there after a signal
                saver.wait()
            raise
    ranks.from_first(lambda: _publish(job.out))
    if ranks.first and state.skipped:
        say(_skipped(job.out, config.lr, state))


def _stream(config: PretrainConfig, index: ShardIndex, ranks: Ranks, windows: Windows, seed: int) -> Stream:
    """This rank's share of the batches of `index`; every rank calls this, and raises the GlomoError of any."""
    return ranks.on_each(lambda: Stream(
        index, window=config.window, windows=windows, seed=seed, global_batch=config.global_batch,
        rank=ranks.rank, world=ranks.world, reading=config.reading,
    ))  # fmt: skip


@dataclasses.dataclass
class _Loop:
    """The steps of a run on one rank.

    hooks: on rank 0, told of every step.  trouble: what a hook had, for all ranks to agree on with the next batch.
    saved: the step of the last checkpoint.  since_logged: seconds by part of the steps since the last logged one.
    """

    job: ResolvedRun
    ranks: Ranks
    engine: Any
    stream: Stream
    feed: Feed
    state: LoopState
    hooks: Sequence[Hook]
    saver: Saver
    clock: Clock
    stopping: Stopping
    trouble: GlomoError | None = None
    since_logged: Counter[str] = dataclasses.field(default_factory=Counter)

    def run(self) -> None:
        config, state = self.job.config, self.state
        valid = _valid_batches(self.job, self.ranks)
        self.saved = state.step
        self.clock.lap("other")
        self.clock.take()
        while not self._done():
            self.clock.step = state.step + 1
            batch = self.feed.take(bool(self.stopping.asked), self.trouble or self.saver.error)
            if batch is None:
                self._interrupt()
            assert batch is not None  # else a rank was asked to stop, and all have raised
            self._step(batch, valid)
            if state.bad_steps >= min(config.max_bad_steps, config.steps):
                self.ranks.agree_on(_diverged(self.job, state))
            if self._done() or state.step % config.checkpoint_every == 0:
                self._save()
                self.clock.lap("checkpoint")
        self.saver.wait()
        self.ranks.agree_on(self.trouble)

    def _done(self) -> bool:
        return self.state.step >= self.job.config.steps or exhausted(self.job.config, self.state.plateau)

    def _step(self, batch: Batch, valid: list[Batch]) -> None:
        """Train on `batch`, validate where it is time, and tell the hooks."""
        config, state, ranks = self.job.config, self.state, self.ranks
        # Dropout is a function of the step as well, so that resuming needs no random state.
        torch.manual_seed(derive_seed(config.seed, "step", state.step, ranks.rank))
        rate = learning_rate(config, state.step, state.plateau)
        set_learning_rate(self.engine, rate)
        last = state.step + 1 == config.steps
        validated = bool(valid) and (last or (state.step + 1) % config.valid_every == 0)
        logged = last or validated or (state.step + 1) % config.log_every == 0
        result = train_step(self.engine, batch, config, ranks, self.clock, with_stats=logged)
        state.step += 1
        state.bad_steps = 0 if result.applied else state.bad_steps + 1
        state.skipped += not result.applied
        row = _row(state, rate, result, logged or not result.applied)
        if not result.applied:
            row["samples"] = _suspects(self.stream, batch, result, ranks)
        if validated:
            row["valid_loss"] = valid_loss(self.engine, valid, config, ranks, self.clock)
            state.plateau = state.plateau.after(row["valid_loss"], config.plateau_patience)
        self.trouble = _tell(self.hooks, row, self.clock, self.since_logged)

    def _save(self) -> None:
        self.saver.save(self.engine, self.state.step, self.state.to_json())
        self.saved = self.state.step

    def _interrupt(self) -> None:
        """The end on all ranks, since one was asked to stop: what is not yet saved is."""
        if self.saved != self.state.step:
            self._save()
        self.ranks.agree_on(_interrupted(self.job.out, self.state, self.stopping.asked))


def _tell(
    hooks: Sequence[Hook], row: dict[str, Any], clock: Clock, since_logged: Counter[str]
) -> GlomoError | None:
    """Add times to the row and show it to the hooks. Returns an error for all ranks to agree on.

    Seconds: wall clock since the previous logged row; its parts add up to it. A checkpoint and what the hooks took
    are booked after the row of their step, so they are in the next one. Units per second: of this step alone.
    since_logged: seconds by part of the steps since the last logged one, which this adds to.
    """
    parts = clock.take()
    step_seconds = sum(parts.values())
    row["units_per_second"] = row["units"] / step_seconds if step_seconds else 0.0
    since_logged.update(parts)
    row["seconds"] = sum(since_logged.values())
    row.update({f"{part}_seconds": since_logged.get(part, 0.0) for part in PARTS})
    if row["logged"]:
        since_logged.clear()
    error = None
    for hook in hooks:
        try:
            hook.step(row)
        except GlomoError as e:
            error = error or e
    clock.lap("other")
    return error


def _row(state: LoopState, rate: float, result: StepResult, logged: bool) -> dict[str, Any]:
    """One row of log.jsonl."""
    return {
        "step": state.step,
        "loss": result.loss,
        "targets": result.targets,
        "units": result.units,
        "grad_norm": result.grad_norm,
        "lr": rate,
        "applied": result.applied,
        "logged": logged,
        **result.stats,
    }


def _valid_batches(job: ResolvedRun, ranks: Ranks) -> list[Batch]:
    """This rank's share of the same few batches, whatever the step."""
    if job.valid_index is None or not job.config.valid_every:
        return []
    windows: Windows = "packed" if job.config.windows == "packed" else "fixed"
    stream = _stream(job.config, job.valid_index, ranks, windows, seed=0)

    def first_ones() -> list[Batch]:
        with contextlib.closing(stream.iterate()) as batches:
            return list(itertools.islice(batches, job.config.valid_batches))

    return ranks.on_each(first_ones)


def _suspects(stream: Stream, batch: Batch, result: StepResult, ranks: Ranks) -> list[str]:
    """SHARD/KEY of the samples in the passes whose loss was not finite on any rank; of all, if no loss tells."""
    rows = [[f"{at.shard}/{at.key}" for at in row] for row in stream.keys(batch)]
    shares = ranks.gather((rows, [rows[i] for i in result.suspects]))
    found = [row for _, bad in shares for row in bad] or [row for every, _ in shares for row in every]
    return list(dict.fromkeys(name for row in found for name in row))


def _moved(manifest: dict[str, Any], ranks: Ranks) -> str:
    before = manifest["ranks"]
    return (
        ""
        if before == ranks.world
        else f"; begun on {counted(before, 'rank')}, its state is now shared by {ranks.world}"
    )


def _interrupted(out: Path, state: LoopState, asked: str) -> Interrupted | None:
    """The end of the run on all ranks, in the words of the first that was asked to stop."""
    if not asked:
        return None
    saved = (
        f"saved at step {state.step}" if state.step else "before its first step, so nothing had to be saved"
    )
    return Interrupted(f"{asked} asked {out} to stop: {saved}. Run the same command again to continue.")


def _skipped(out: Path, lr: float, state: LoopState) -> str:
    """What is said at the end of a run with skipped steps: not all is well if the last was one."""
    text = f"{out}: {state.skipped} of {state.step} steps skipped, with a non-finite loss or gradient."
    if not state.bad_steps:
        return text
    return (
        f"WARNING: {text} The last is one of them: the run has probably diverged, its model is that of step "
        f"{state.step - state.bad_steps}. Look at {out / run_folder.LOG}, lower --lr ({lr:g}), start in another "
        "folder."
    )


def _diverged(job: ResolvedRun, state: LoopState) -> GlomoError:
    return GlomoError(
        f"{counted(state.bad_steps, 'step')} in a row (the last is {state.step}) had a non-finite loss or "
        f"gradient; none of them reached the weights. {job.out / run_folder.LOG} names their samples. Lower lr "
        f"({job.config.lr}) or clip, or lengthen warmup_steps, and start in another folder."
    )


def _exporter(job: ResolvedRun) -> Export:
    extra = {
        "data": job.index.fingerprint,
        "pretrain": to_dict(job.config),
        "code": code_version(),
    }
    return exporter(job.config.model, job.tokenizer.to_json(), extra)


def _publish(out: Path) -> None:
    """Copy the last checkpoint's model to RUN/model: its presence says that the run is finished."""
    newest, model = checkpoint.existing(out / run_folder.CHECKPOINTS)[0], out / run_folder.MODEL
    with files.new_folder(model, run_folder.GO_ON) as temporary, files.writing(model, run_folder.GO_ON):
        shutil.copytree(newest / checkpoint.MODEL, temporary, dirs_exist_ok=True)
