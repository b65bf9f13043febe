"""Pretraining on one GPU at the paper's size, through DeepSpeed: does bf16 learn what fp32 learns, does a run go on
where it stopped, how fast is a step and where does its time go.

Width 512, 8 heads, 3 graph layers, 100,000 words, windows of 200; AdamW, ZeRO 1. The words are made here: half of
them follow from the word before, so there is something to learn. On the same batches run, side by side with the rest,
a few steps in fp32 on the CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.part import Part
from gpu.steps import speed

COLUMNS = (
    "what", "step", "loss", "fp32_loss", "cpu_loss", "batch", "units_s", "tflops", "share_of_peak", "seconds",
    "kernel", "share",
)  # fmt: skip
CPU_STEPS = 4
NOISE = 0.02  # relative difference of the losses of bf16 and fp32


def begin_alone() -> Any:
    """Join a group of one rank, in this process."""
    from glomo_dist.pretrain.ranks import group

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    return group.join()


def recipe(part: Part, steps: int, **changes: Any) -> Any:
    """The paper's model with a norm that does not depend on the batch, and AdamW."""
    from glomo_dist import recipes

    config = recipes.tiny() if part.dry else recipes.ancestor_text_paper()
    model = dataclasses.replace(config.model, vocab_size=0, norm="layer", scale_grad_by_freq=False)
    config = dataclasses.replace(
        config, model=model, optimizer="adamw", momentum=0.0, lr=5e-4, graph_lr_share=0.1, clip=1.0, zero_stage=1,
        schedule="constant", valid_every=0, warmup_steps=0, steps=steps, checkpoint_every=steps,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def shards(part: Part, folder: Path) -> Path:
    """Documents of made-up words: half follow from the word before, the others are drawn as words are (Zipf)."""
    from glomo_dist.data.shards.writing import ShardFolder
    from glomo_dist.data.tokenizers.text import UNKNOWN, WordTokenizer

    words, documents, length = (500, 60, 100) if part.dry else (100_001, 4000, 1000)
    tokenizer = WordTokenizer((UNKNOWN, *(f"w{n}" for n in range(1, words))))
    generator = np.random.default_rng(0)
    writer = ShardFolder(folder, tokenizer, 1 << 26)
    for number in range(documents):
        ids = np.minimum(generator.zipf(1.2, length), words - 1)
        for at in np.flatnonzero(generator.random(length - 1) < 0.5) + 1:
            ids[at] = (ids[at - 1] * 7919 + 17) % (words - 1) + 1
        writer.add(ids, {"number": number})
    writer.close()
    return folder


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def start_run(config: Any, data: Path, out: Path, on_cpu: bool = False) -> subprocess.Popen[bytes]:
    """A run in processes of its own, as `glomo pretrain` starts it."""
    code = (
        "import json, os, sys\n"
        "cores = sorted(os.sched_getaffinity(0))\n"
        "os.sched_setaffinity(0, cores[min(int(sys.argv[4]), len(cores) - 1):])\n"
        "from glomo_dist.pretrain import PretrainConfig, pretrain\n"
        "from glomo_dist.runtime.config import from_dict\n"
        "pretrain(from_dict(PretrainConfig, json.loads(sys.argv[1]), 'gpu'), sys.argv[2], sys.argv[3])\n"
    )
    from glomo_dist.runtime.config import to_dict

    taken = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "DS_ACCELERATOR",
    )
    environment = {k: v for k, v in os.environ.items() if k not in taken}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    spared = 4 if on_cpu else 0  # cores for the runs beside it
    command = [sys.executable, "-c", code, json.dumps(to_dict(config)), str(data), str(out), str(spared)]
    return subprocess.Popen(command, env=environment)


def train_here(config: Any, data: Path, out: Path, ranks: Any) -> list[float]:
    from glomo_dist.pretrain import worker
    from glomo_dist.pretrain.settings.resolve import resolve

    worker.run_in(resolve(config, data, out), ranks)
    return losses(out)


def main(part: Part) -> None:
    os.environ.pop("TRITON_INTERPRET", None)  # a dry run trains with the CPU's kernels
    from gpu import wheels

    wheels.use(part)
    torch.use_deterministic_algorithms(False)
    wrong: list[str] = []
    exact, coarse, on_cpu = list[float](), list[float](), list[float]()
    with (
        tempfile.TemporaryDirectory(prefix="glomo-pretrain-") as folder,
        part.table("pretrain", COLUMNS) as table,
    ):
        scratch = Path(folder)
        data = shards(part, scratch / "shards")
        steps = 4 if part.dry else 30
        single, half = recipe(part, steps), recipe(part, steps, precision="bf16", checkpoint_every=steps // 2)
        beside = start_run(dataclasses.replace(single, steps=CPU_STEPS), data, scratch / "cpu", on_cpu=True)
        ranks = begin_alone()

        def trained(config: Any, name: str) -> list[float]:
            return part.attempt(wrong, name, lambda: train_here(config, data, scratch / name, ranks)) or []

        try:
            exact = trained(single, "fp32")
            coarse = trained(half, "bf16")
            if exact and coarse:
                wrong += compare(part, exact, coarse)
            if coarse:
                wrong += part.attempt(wrong, "to go on", lambda: resume(part, half, data, scratch)) or []
            on_cpu = collect(part, beside, scratch / "cpu")  # before anything is timed
            part.attempt(wrong, "speed", lambda: speed(part, table, data, ranks, recipe))
        finally:
            stop(beside)
            rows = itertools.zip_longest(range(1, steps + 1), coarse, exact, on_cpu, fillvalue="")
            for step, bf16, fp32, cpu in rows:
                table.add(what="loss", step=step, loss=bf16, fp32_loss=fp32, cpu_loss=cpu)
            from glomo_dist.pretrain.ranks import group

            group.leave()
    if on_cpu and exact:
        worst = max(abs(a - b) / b for a, b in zip(exact, on_cpu, strict=False))
        part.note(f"fp32 here and on the CPU, {len(on_cpu)} steps: losses differ by at most {worst:.2%}")
        wrong += [] if worst < NOISE else ["fp32 differs from the CPU"]
    if wrong:
        sys.exit("; ".join(wrong))


def compare(part: Part, exact: list[float], coarse: list[float]) -> list[str]:
    worst = max(abs(a - b) / b for a, b in zip(coarse, exact, strict=True))
    part.note(
        f"loss, {len(exact)} steps: fp32 {exact[0]:.3f} to {exact[-1]:.3f}, bf16 {coarse[0]:.3f} to "
        f"{coarse[-1]:.3f}; they differ by at most {worst:.2%}"
    )
    wrong = [] if worst < NOISE else [f"bf16 and fp32 differ by {worst:.2%}"]
    return wrong + ([] if coarse[-1] < coarse[0] and exact[-1] < exact[0] else ["the loss does not fall"])


def resume(part: Part, config: Any, data: Path, scratch: Path) -> list[str]:
    """Go on from the first checkpoint in a new process: the losses and the weights of the whole run, to the bit."""
    whole, again = scratch / "bf16", scratch / "again"
    first = min((whole / "checkpoints").glob("step-*"))
    shutil.copytree(first, again / "checkpoints" / first.name)
    for name in ("config.json", "log.jsonl"):
        shutil.copy(whole / name, again)
    (again / "checkpoints" / "latest").write_text(f"{first.name}\n")
    going_on = start_run(config, data, again)
    try:
        code = going_on.wait(max(1.0, part.left() / 2))
    finally:
        stop(going_on)
    if code != 0:
        return [f"a run that goes on ended with exit code {code}"]
    same_losses = losses(again) == losses(whole)
    files = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, again)]
    part.note(
        f"resumed at {first.name}: losses {'the same' if same_losses else 'DIFFERENT'}, weights "
        f"{'the same bits' if files[0] == files[1] else 'DIFFERENT'}"
    )
    return [] if same_losses and files[0] == files[1] else ["a resumed run is another run"]


def collect(part: Part, process: subprocess.Popen[bytes], run: Path) -> list[float]:
    """The losses of the run on the CPU: all, or as many as there are when half of the rest of the time is over."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(1.0, part.left() / 2))
    stop(process)
    return losses(run) if (run / "log.jsonl").exists() else []


def stop(process: subprocess.Popen[bytes]) -> None:
    """At once, with all that it started: asked to end, a run first saves what nobody reads, for up to a minute."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()
