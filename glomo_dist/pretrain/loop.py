"""The loop over optimizer steps: data, step, validation, hooks, checkpoints, the model at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glomo_dist.data import Stream
from glomo_dist.model import Glomo, save_model
from glomo_dist.pretrain import checkpoint, feed, run_folder
from glomo_dist.pretrain.engine import average_buffers, build_engine, set_learning_rate, whole_state
from glomo_dist.pretrain.hooks import Hook, open_hooks
from glomo_dist.pretrain.ranks import Ranks
from glomo_dist.pretrain.run_folder import Job
from glomo_dist.pretrain.schedule import Plateau, exhausted, learning_rate
from glomo_dist.pretrain.step import Clock, StepResult, train_step, valid_loss
from glomo_dist.runtime import files
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.fingerprint import code_version, derive_seed
from glomo_dist.runtime.progress import say


@dataclasses.dataclass
class State:
    """What the loop must remember besides weights and optimizer; goes into every checkpoint.

    step: optimizer steps done; it is also the whole state of the data stream.  bad_steps: skipped in a row.
    """

    step: int = 0
    bad_steps: int = 0
    plateau: Plateau = dataclasses.field(default_factory=Plateau)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> State:
        return cls(value["step"], value["bad_steps"], Plateau(**value["plateau"]))


def train(job: Job, ranks: Ranks) -> None:
    """Train from the newest good checkpoint of `job.out` (or from nothing) to the end, on every rank."""
    config = job.config
    torch.manual_seed(derive_seed(config.seed, "weights"))
    model = Glomo(config.model)
    engine = build_engine(model, config, ranks)
    folder = job.out / "checkpoints"
    state = State()
    found = ranks.from_first(lambda: checkpoint.find_newest(folder, ranks.world))
    if found is not None:
        checkpoint.load(engine, found[0])
        state = State.from_json(found[1]["state"])
        if ranks.first:
            say(f"continuing {job.out} from step {state.step} of {config.steps}")
    stream = Stream(
        job.index,
        window=config.window,
        windows=config.windows,
        seed=config.seed,
        global_batch=config.global_batch,
        rank=ranks.rank,
        world=ranks.world,
        reading=config.reading,
    )
    hooks = open_hooks(job.out, state.step, config.steps) if ranks.first else ()
    try:
        _steps(job, ranks, engine, stream, state, hooks)
    finally:
        for hook in hooks:
            hook.close()
    ranks.from_first(lambda: _publish(job.out))


def _steps(job: Job, ranks: Ranks, engine: Any, stream: Stream, state: State, hooks: Sequence[Hook]) -> None:
    config = job.config
    valid = _valid_batches(job, ranks)
    clock = Clock(ranks.device)
    began = time.perf_counter()
    batches = feed.batches(stream, ranks, state.step, job.out, config.reading.max_bad_shards)
    while state.step < config.steps and not exhausted(config, state.plateau):
        # Dropout is a function of the step as well, so that resuming needs no random state.
        torch.manual_seed(derive_seed(config.seed, "step", state.step, ranks.rank))
        rate = learning_rate(config, state.step, state.plateau)
        set_learning_rate(engine, rate)
        last = state.step + 1 == config.steps
        logged = last or (state.step + 1) % config.log_every == 0
        result = train_step(engine, next(batches), config, ranks, clock, with_stats=logged)
        state.step += 1
        state.bad_steps = 0 if result.applied else state.bad_steps + 1
        validation = None
        if valid and (last or state.step % config.valid_every == 0):
            validation = valid_loss(engine, valid, config, ranks)
            state.plateau = state.plateau.after(validation, config.plateau_patience)
            clock.lap("valid")
        now = time.perf_counter()
        row = _row(state, rate, result, validation, now - began, clock.take(), logged)
        began = now
        for hook in hooks:
            hook.step(row)
        if state.bad_steps >= config.max_bad_steps:
            raise GlomoError(
                f"{state.bad_steps} steps in a row (the last is {state.step}) had a non-finite loss or "
                f"gradient; none of them reached the weights. Lower lr ({config.lr}) or clip, or lengthen "
                "warmup_steps, and start in another folder."
            )
        if last or state.step % config.checkpoint_every == 0 or exhausted(config, state.plateau):
            _save(job, ranks, engine, state)
            clock.lap("checkpoint")


def _valid_batches(job: Job, ranks: Ranks) -> list[Any]:
    """This rank's share of the same few batches, whatever the step."""
    if job.valid_index is None or not job.config.valid_every:
        return []
    stream = Stream(
        job.valid_index,
        window=job.config.window,
        windows="packed" if job.config.windows == "packed" else "fixed",
        seed=0,
        global_batch=job.config.global_batch,
        rank=ranks.rank,
        world=ranks.world,
        reading=job.config.reading,
    )
    with contextlib.closing(stream.iterate()) as batches:
        return list(itertools.islice(batches, job.config.valid_batches))


def _row(
    state: State,
    rate: float,
    result: StepResult,
    validation: float | None,
    seconds: float,
    parts: dict[str, float],
    logged: bool,
) -> dict[str, Any]:
    """One row of log.jsonl. Seconds: wall clock since the previous row, a checkpoint between included."""
    row = {
        "step": state.step,
        "loss": result.loss,
        "targets": result.targets,
        "units": result.units,
        "grad_norm": result.grad_norm,
        "lr": rate,
        "applied": result.applied,
        "seconds": seconds,
        **{f"{part}_seconds": parts.get(part, 0.0) for part in PARTS},
        "logged": logged,
        **result.stats,
    }
    if validation is not None:
        row["valid_loss"] = validation
    return row


PARTS = ("data", "forward", "backward", "optimizer", "valid", "checkpoint")


def _save(job: Job, ranks: Ranks, engine: Any, state: State) -> None:
    average_buffers(engine, ranks)
    weights = whole_state(engine)

    def export(path: Path) -> None:
        if ranks.first:
            model = Glomo(job.config.model)
            model.load_state_dict(weights)
            extra = {
                "tokenizer": job.tokenizer.fingerprint,
                "data": job.index.fingerprint,
                "step": state.step,
                "pretrain": to_dict(job.config),
                "code": code_version(),
            }
            save_model(path, model, job.tokenizer.to_json(), extra)

    checkpoint.save(
        engine,
        job.out / "checkpoints",
        state.step,
        dataclasses.asdict(state),
        ranks,
        export,
        job.config.keep_checkpoints,
    )


def _publish(out: Path) -> None:
    """Copy the last checkpoint's model to RUN/model: its presence says that the run is finished."""
    if run_folder.finished(out):
        return
    newest = checkpoint.existing(out / "checkpoints")[0]
    with files.new_folder(out / run_folder.MODEL) as temporary:
        shutil.copytree(newest / "model", temporary, dirs_exist_ok=True)
