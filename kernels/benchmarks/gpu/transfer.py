"""Transfer on a GPU: a predictor's graphs and the training of task models there, against the processor's.

Sentences of made-up words: one of two tells the label, and the features of a sentence know neither of them but by the
task's own embeddings. Both devices start from the same parameters, without dropout, whose random numbers differ.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpu.part import Part

WORDS = [f"w{n}" for n in range(200)]
EDGES = 0.02  # share of the edges that one of the devices has alone, where scores are so near theta
NOISE = 0.05  # relative difference of the losses


def write_task(folder: Path, sizes: tuple[int, int, int]) -> str:
    """SST-2's tables, of such sentences."""
    folder.mkdir()
    draw = random.Random(0)
    for split, size in zip(("train", "dev", "test"), sizes, strict=True):
        lines = ["sentence\tlabel"]
        for i in range(size):
            words = [*draw.choices(WORDS, k=draw.randint(5, 40)), "beta" if i % 2 else "alpha"]
            draw.shuffle(words)
            lines.append(" ".join(words) + f"\t{i % 2}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def write_predictor(folder: Path) -> str:
    from glomo_dist.data.tokenizers.text import UNKNOWN, WordTokenizer
    from glomo_dist.model import Glomo, GlomoConfig, save_model

    tokenizer = WordTokenizer((UNKNOWN, "alpha", "beta", *WORDS))
    torch.manual_seed(0)
    config = GlomoConfig(vocab_size=tokenizer.vocab_size, width=128, heads=4, layers=2)
    return str(save_model(folder, Glomo(config), tokenizer.to_json()))


def differences(part: Part, stores: list[Any], examples: int) -> tuple[float, float]:
    """(share of the edges that only one store has, largest difference of the weights that both have)."""
    alone = both = 0
    largest = 0.0
    for a, b in zip(*(store.batch("train.text", range(examples)) for store in stores), strict=True):
        first, second = a.dense(), b.dense()
        shared = (first > 0) & (second > 0)
        alone += int(((first > 0) ^ (second > 0)).sum())
        both += int(shared.sum())
        largest = max(largest, float((first - second)[shared].abs().max()))
    return alone / (alone + both), largest


def main(part: Part) -> None:
    from gpu import wheels

    wheels.use(part)
    from glomo_dist.graphs.store import GraphStore
    from glomo_dist.transfer.export import export_task
    from glomo_dist.transfer.finetune import run
    from glomo_dist.transfer.job import FinetuneJob

    devices = ("cpu", part.device)
    failed = []
    with tempfile.TemporaryDirectory(prefix="glomo-transfer-") as name:
        folder = Path(name)
        source = write_task(folder / "task", (60, 20, 20) if part.dry else (2000, 400, 400))
        predictor = write_predictor(folder / "predictor")
        stores, seconds = [], []
        for number, device in enumerate(devices):
            began = time.perf_counter()
            out = export_task("sst2", predictor, folder / f"graphs-{number}", source=source, device=device)
            seconds.append(time.perf_counter() - began)
            stores.append(GraphStore.open(out))
        alone, largest = differences(part, stores, 20 if part.dry else 400)
        part.note(
            f"export: {seconds[0]:.1f} s on the processor, {seconds[1]:.1f} s here; {alone:.3%} of the edges on one "
            f"of them alone, weights up to {largest:.1e} apart"
        )
        if alone > EDGES or largest > EDGES:
            failed.append("export")
        graphs = str(folder / "graphs-0")
        for reader in ("gru", "lstm", "bag"):
            job = FinetuneJob(
                "sst2", arm="pretrained", task_source=source, graphs=graphs, reader=reader, epochs=2, dropout=0.0,
                lr=2e-3,
            )  # fmt: skip
            results = [run(dataclasses.replace(job, device=device)) for device in devices]
            losses = [result.curve[-1].train_loss for result in results]
            part.note(
                f"a job with {reader}: loss {losses[0]:.4f} on the processor, {losses[1]:.4f} here, test "
                f"{results[0].test:.1%} and {results[1].test:.1%}; {results[0].seconds:.1f} and "
                f"{results[1].seconds:.1f} s"
            )
            if abs(losses[1] - losses[0]) > NOISE * losses[0]:
                failed.append(f"a job with {reader}")
    if failed:
        sys.exit(f"not as on the processor: {', '.join(failed)}")
