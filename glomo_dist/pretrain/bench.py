"""What reading and checkpoints cost a training step, on this machine, in one rank.

    python -m glomo_dist.pretrain.bench [--width 64] [--steps 20] [--rounds 3] [--readers 2]

Steps that read their batches take turns with steps on one batch that is used again and again, and steps during
which a checkpoint is written with steps during which none is. Documents are made up; vocabulary and model are those
of the recipe `base`, or smaller by flags.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from glomo_dist.data import Batch, Reading, Stream
from glomo_dist.data.bench import VOCABULARY, make
from glomo_dist.model import Glomo, GlomoConfig
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.output.saving import Saver, exporter
from glomo_dist.pretrain.ranks import group
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.pretrain.steps.clock import Clock
from glomo_dist.pretrain.steps.engine import build_engine, set_learning_rate
from glomo_dist.pretrain.steps.step import train_step
from glomo_dist.runtime.processes import usable_cores
from glomo_dist.runtime.words import counted


def joined() -> Ranks:
    """A group of one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    return group.join()


def reading_seconds() -> float:
    """Processor time of this process's readers and of its threads that read ahead, so far."""
    here = psutil.Process()
    ours = {t.native_id for t in threading.enumerate() if t.name == "glomo-prefetch"}
    threads = sum(t.user_time + t.system_time for t in here.threads() if t.id in ours)
    readers = [child for child in here.children() if "data.reading.reader" in " ".join(child.cmdline())]
    return threads + sum(sum(child.cpu_times()[:2]) for child in readers)


def measure_reading(stream: Stream, step: Callable[[Batch], None], steps: int, rounds: int) -> None:
    """Print what a step takes that reads its batch, and one that does not; and what reading itself takes."""
    with contextlib.closing(stream.iterate()) as batches:
        again = next(batches)
        step(again)
        times: dict[str, list[float]] = {"reading": [], "again": []}
        waited, worked = 0.0, 0.0
        for _ in range(rounds):
            before = reading_seconds()
            for _ in range(steps):
                began = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - began
                step(batch)
                times["reading"].append(time.perf_counter() - began)
            worked += reading_seconds() - before
            for _ in range(steps):
                began = time.perf_counter()
                step(again)
                times["again"].append(time.perf_counter() - began)
    n, took = steps * rounds, sum(times["reading"])
    print(f"reading, {n} steps each way, alternating in rounds of {steps}:")
    for name, values in times.items():
        print(
            f"  {name:8} a step takes {statistics.median(values):.3f} s (median), "
            f"{statistics.quantiles(values, n=4)[0]:.3f} to {statistics.quantiles(values, n=4)[2]:.3f} (quartiles)"
        )
    print(f"  the step waits for its batch for {waited / n * 1e3:.2f} ms: {waited / took:.2%} of its time")
    cores = usable_cores()
    print(
        f"  readers and threads work {worked / n * 1e3:.2f} ms a step: {worked / took / cores:.2%} of the "
        f"processor time of {counted(cores, 'core')}"
    )


def measure_checkpoint(
    saver: Saver, engine: Any, folder: Path, step: Callable[[], None], rounds: int
) -> None:
    """Print what a checkpoint costs, and a step beside one. folder: the one that `saver` writes to."""
    copied, whole, alone, beside = list[float](), list[float](), list[float](), list[float]()
    for number in range(rounds):
        began = time.perf_counter()
        saver.save(engine, 2 * number, {})
        copied.append(time.perf_counter() - began)
        saver.wait()
        whole.append(time.perf_counter() - began)
        for _ in range(3):
            began = time.perf_counter()
            step()
            alone.append(time.perf_counter() - began)
        saver.save(engine, 2 * number + 1, {})
        while not beside or saver.busy:  # one at least, however fast the disk
            began = time.perf_counter()
            step()
            beside.append(time.perf_counter() - began)
        saver.wait()
    state = sum(file.stat().st_size for file in folder.glob("step-*/state/*.safetensors"))
    print(f"a checkpoint, {state / 1e6:.0f} MB of state, {rounds} times, medians:")
    print(f"  training waits {statistics.median(copied):.3f} s while the state is copied")
    print(f"  on disk, model and hashes included, after {statistics.median(whole):.2f} s when training waits")
    print(
        f"  a step takes {statistics.median(beside):.3f} s while one is written, {statistics.median(alone):.3f} s "
        f"while none is ({len(beside)} and {len(alone)} steps)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of a round, 2 or more")
    parser.add_argument("--rounds", type=int, default=3, help="1 or more")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="of the model")
    parser.add_argument("--batch", type=int, default=32, help="sequences of 128 units in a step")
    parser.add_argument(
        "--megabytes", type=float, default=8, help="of ids, in documents of 2000 units on average"
    )
    given = parser.parse_args()
    if given.steps < 2 or given.rounds < 1:
        parser.error("quartiles take --steps of 2 or more, and --rounds of 1 or more")
    ranks = joined()
    print(
        f"{counted(usable_cores(), 'core')}, {counted(torch.get_num_threads(), 'thread')}, width {given.width}, "
        f"batch {given.batch}"
    )
    try:
        with tempfile.TemporaryDirectory(prefix="glomo-pretrain-bench-") as scratch:
            index = make(Path(scratch, "shards"), given.megabytes, 2000)
            reading = Reading(readers=given.readers, cache=str(Path(scratch, "cache")))
            model = GlomoConfig(vocab_size=VOCABULARY, width=given.width)
            config = PretrainConfig(model=model, global_batch=given.batch, reading=reading)
            engine = build_engine(Glomo(model), config, ranks)
            set_learning_rate(engine, config.lr)
            clock = Clock(ranks.device)
            stream = Stream(
                index, window=config.window, seed=0, global_batch=config.global_batch, reading=reading
            )

            def step(batch: Batch) -> None:
                train_step(engine, batch, config, ranks, clock, with_stats=True)

            measure_reading(stream, step, given.steps, given.rounds)
            folder = Path(scratch, "checkpoints")
            export = exporter(model, index.load_tokenizer().to_json(), {})
            saver = Saver(folder, ranks, 1, export, lambda: None, lambda: None)
            again = stream.batch(0)
            measure_checkpoint(saver, engine, folder, lambda: step(again), given.rounds)
    finally:
        group.leave()


if __name__ == "__main__":
    main()
