"""A predictor trained as long as the time allows, of a size that can be kept: below 16 MB in float16.

    make gpu PARTS=train BUDGET=580 GPU_DATA=folder     shards made by `glomo prepare text`, vocabulary up to 30,000

Writes OUT/predictor (a model folder, as `glomo export` takes it) and OUT/train.csv. The number of steps follows from
the speed of the first ones, so that the learning rate comes down in time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu.part import ROOT, Part
from gpu.pretrain import begin_alone, shards

COLUMNS = ("step", "loss", "units", "lr", "seconds")
RESERVE_S = 25.0  # for the checkpoint, the export and the start


def recipe(part: Part) -> Any:
    from glomo_dist import recipes
    from glomo_dist.model import GlomoConfig
    from glomo_dist.pretrain import PretrainConfig

    if part.dry:
        return dataclasses.replace(recipes.tiny(), steps=4)
    model = GlomoConfig(width=128, heads=8, layers=3, key_layers=3, query_layers=3)
    return PretrainConfig(
        model=model, window=200, global_batch=256, positions_per_sequence=20, lr=1e-3, warmup_steps=200,
        zero_stage=1, precision="bf16", log_every=20, steps=1000, checkpoint_every=10**9,
    )  # fmt: skip


def find_data(part: Part, scratch: Path) -> Path:
    """GPU_DATA: a folder of shards, or a .tar.xz of one; dry, made-up words."""
    if part.dry:
        return shards(part, scratch / "shards")
    given = Path(os.environ.get("GPU_DATA") or ROOT / "gpu-data" / "train.tar.xz")
    if given.is_file():
        with tarfile.open(given) as archive:
            archive.extractall(scratch / "shards", filter="data")
        return next((scratch / "shards").rglob("index.json")).parent
    if not (given / "index.json").exists():
        sys.exit(
            f"{given} holds no shards: name a folder of `glomo prepare text`, or a .tar.xz of one, in GPU_DATA"
        )
    return given


def seconds_per_step(config: Any, data: Path, ranks: Any) -> float:
    from glomo_dist.data import Stream
    from glomo_dist.model import Glomo
    from glomo_dist.pretrain.settings.resolve import resolve_inputs
    from glomo_dist.pretrain.steps.clock import Clock
    from glomo_dist.pretrain.steps.engine import build_engine
    from glomo_dist.pretrain.steps.step import train_step

    job = resolve_inputs(config, data)
    engine = build_engine(Glomo(job.config.model), job.config, ranks)
    stream = Stream(
        job.index,
        window=config.window,
        windows=config.windows,
        seed=1,
        global_batch=config.global_batch,
        rank=0,
        world=1,
    )
    clock, times = Clock(ranks.device), []
    steps = range(4 if config.steps < 10 else 30)
    for batch in list(stream.batches(steps)):  # read before, as a run reads beside its steps
        began = time.perf_counter()
        train_step(engine, batch, job.config, ranks, clock, with_stats=False)
        times.append(time.perf_counter() - began)
    engine.destroy()
    return statistics.median(times[len(times) // 2 :])


def main(part: Part) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    from gpu import wheels

    wheels.use(part)
    from glomo_dist.model.keep import keep
    from glomo_dist.pretrain import worker
    from glomo_dist.pretrain.ranks import group
    from glomo_dist.pretrain.settings.resolve import resolve

    with tempfile.TemporaryDirectory(prefix="glomo-train-") as folder:
        scratch = Path(folder)
        data = find_data(part, scratch)
        ranks = begin_alone()
        try:
            config = recipe(part)
            each = seconds_per_step(config, data, ranks)
            steps = config.steps if part.dry else max(400, int((part.left() - RESERVE_S) * 0.92 / each))
            config = dataclasses.replace(config, steps=steps)
            batch = f"{config.global_batch} x {config.window} units"
            part.note(f"{each * 1e3:.1f} ms a step, so {steps} steps of {batch}")
            worker.run_in(resolve(config, data, scratch / "run"), ranks)
        finally:
            group.leave()
        rows = [json.loads(line) for line in (scratch / "run" / "log.jsonl").read_text().splitlines()]
        with part.table("train", COLUMNS) as table:
            for row in rows:
                table.add(**{name: row[name] for name in COLUMNS})
        for file in (part.out / "predictor").glob("*"):
            file.unlink()
        kept = keep(scratch / "run", part.out / "predictor")
    size = (kept / "model.safetensors").stat().st_size
    part.note(f"loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}; predictor kept, {size / 1e6:.1f} MB")
