"""How fast training data is read here, beside plain WebDataset and the parsing of text.

    python -m glomo_dist.data.bench --megabytes 64 --units 2000 50

For documents of each length it makes a shard folder with random ids and reads all of it. A MB is 10^6 bytes of ids as
they are stored, two bytes each. Time is the processor's in this process (with readers: the clock's), so that other
work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from glomo_dist.data.reading.config import Reading
from glomo_dist.data.reading.gather import Gatherer, Request
from glomo_dist.data.reading.loader import Stream
from glomo_dist.data.reading.order import Windows
from glomo_dist.data.shards.index import ShardIndex
from glomo_dist.data.shards.writing import ShardFolder
from glomo_dist.data.tokenizers.text import WordTokenizer

WINDOW, VOCABULARY, ROUNDS = 200, 30_000, 3


def make(folder: Path, megabytes: float, units: int) -> ShardIndex:
    """A shard folder of documents with `units` units on average, and the same as text (text.txt)."""
    draw = np.random.default_rng(0)
    words = WordTokenizer(("<unk>", *(f"w{i}" for i in range(1, VOCABULARY))))
    writer = ShardFolder(folder, words, 64 << 20)
    with open(folder / "text.txt", "w") as text:
        while writer.tokens * 2 < megabytes * 1e6:
            ids = draw.integers(1, VOCABULARY, int(draw.integers(units // 2, units * 3 // 2 + 1)))
            writer.add(ids, {"source": "made", "row": writer.samples})
            text.write(" ".join(f"w{i}" for i in ids.tolist()) + "\n")
    writer.close()
    return ShardIndex.read(folder)


def stream(index: ShardIndex, cache: Path, batch: int, readers: int, windows: Windows = "fixed") -> Stream:
    reading = Reading(readers=readers, cache=str(cache))
    return Stream(index, window=WINDOW, seed=0, global_batch=batch, windows=windows, reading=reading)


def open_all(index: ShardIndex, cache: Path) -> int:
    """Check every shard as it is done when it is opened for the first time on a machine."""
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        gatherer = Gatherer(stream(index, Path(fresh), 1, 0).library, index.layout)
        one = np.zeros(1, np.int64)
        for shard in range(len(index.shards)):
            gatherer.gather(Request(1, 1, one + shard, one, one + 1, one))
        gatherer.close()
    return index.tokens


def read_all(index: ShardIndex, cache: Path, batch: int, readers: int, windows: Windows = "fixed") -> int:
    """An epoch, its order and opening included; by the calling thread, or by readers, their start included."""
    s = stream(index, cache, batch, readers, windows)
    steps = range(s.order.per_epoch // batch)
    with contextlib.closing(s.iterate() if readers else s.batches(steps)) as batches:
        return sum(int(next(batches).lengths.sum()) for _ in steps)


def again(index: ShardIndex, cache: Path, batch: int) -> Callable[[], int]:
    """Reads an epoch whose order is known, from shards that are open; from the second time on."""
    s = stream(index, cache, batch, 0)
    steps = range(s.order.per_epoch // batch)
    batches = s.batches(itertools.cycle(steps))
    return lambda: sum(int(next(batches).lengths.sum()) for _ in steps)


def read_webdataset(index: ShardIndex) -> int:
    """Every sample through `webdataset`, decoded; not cut into windows, nor put into batches."""
    import webdataset

    urls = [str(index.folder / shard.name) for shard in index.shards]
    return sum(len(s["npy"]) for s in webdataset.WebDataset(urls, shardshuffle=False).decode())


def parse_text(index: ShardIndex) -> int:
    """Lines of text, split at spaces and looked up in a dictionary, as the paper's authors read their corpus."""
    numbers = {f"w{i}": i for i in range(VOCABULARY)}
    units = 0
    with open(str(index.folder / "text.txt")) as lines:
        for line in lines:
            units += len(np.array([numbers.get(word, 0) for word in line.split()], np.int64))
    return units


def measure(work: Callable[[], int], clock: Callable[[], float]) -> float:
    """Units per second of the fastest of a few rounds."""
    best = 0.0
    for _ in range(ROUNDS):
        began = clock()
        best = max(best, work() / (clock() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=64, help="of ids per length of document")
    parser.add_argument("--units", type=int, nargs="+", default=[2000, 50], help="mean lengths of documents")
    arguments = parser.parse_args()
    for units in arguments.units:
        with tempfile.TemporaryDirectory(prefix="glomo-data-bench-") as scratch:
            index = make(Path(scratch, "shards"), arguments.megabytes, units)
            cache = Path(scratch, "cache")
            tar = sum(shard.bytes for shard in index.shards)
            print(
                f"documents of {units} units: {index.samples:,}, {index.tokens * 2 / 1e6:.0f} MB of ids in "
                f"{tar / 1e6:.0f} MB of shards; windows of {WINDOW}"
            )
            ways: dict[str, Callable[[], int]] = {
                "first opening: SHA-256, structure, ids": partial(open_all, index, Path(scratch)),
                "batches of 64": partial(read_all, index, cache, 64, 0),
                "batches of 512": partial(read_all, index, cache, 512, 0),
                "batches of 512, order and shards at hand": again(index, cache, 512),
                "packed batches of 512": partial(read_all, index, cache, 512, 0, "packed"),
                "batches of 512 from 2 readers": partial(read_all, index, cache, 512, 2),
                "webdataset, samples only": partial(read_webdataset, index),
                "text: split and dictionary": partial(parse_text, index),
            }
            for name, work in ways.items():
                rate = measure(work, time.perf_counter if "readers" in name else time.process_time)
                print(f"  {name:<40} {2 * rate / 1e6:8.2f} MB/s {rate / 1e6:8.2f} M units/s", flush=True)


if __name__ == "__main__":
    main()
