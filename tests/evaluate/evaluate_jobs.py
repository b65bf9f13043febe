"""Job functions small enough to read and real enough to raise, hang and die. Workers import them by name."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from glomo_dist.evaluate.attempt import Job, job_folder

HARM_DONE = "harm-done"


@dataclass(frozen=True)
class Work:
    """folder: where the job leaves a mark each time it is started."""

    kind: str
    folder: str
    value: int = 0


def job(kind: str, folder: Path, value: int = 0, **options) -> Job:
    return Job(f"{kind}-{value}", Work(kind, str(folder), value), **options)


def run(work: Work) -> dict[str, object]:
    folder = Path(work.folder)
    starts = len(list(folder.glob(f"{work.kind}-{work.value}.*")))
    (folder / f"{work.kind}-{work.value}.{starts}").touch()
    if work.kind == "raise":
        raise ValueError(f"a job with value {work.value} cannot work")
    if work.kind == "exit":
        sys.exit(work.value)
    if work.kind == "noted":
        error = ValueError("two lines\nof reason")
        error.__notes__ = ["Is the batch\nempty?"]  # add_note, before 3.11 too
        raise error
    if work.kind == "swallows":
        for _ in range(600):
            with contextlib.suppress(BaseException):
                time.sleep(0.05)
                continue
            break
        time.sleep(30)
    if work.kind == "no_text":
        raise ValueError("no text: \udce9")
    if work.kind == "no_json":
        return {"values": {1, 2}}
    if work.kind == "stop":
        os.kill(os.getpid(), work.value)
    if work.kind == "dies_once" and starts == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if work.kind == "dies_late" and starts == 0:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    if work.kind == "always_dies":
        print("last words", flush=True)
        os._exit(17)
    if work.kind == "slow":
        time.sleep(1.0)
    if work.kind == "waits":  # so that both nodes are sure to be at work when the harm is done
        while not (folder / HARM_DONE).exists():
            time.sleep(0.05)
    if work.kind == "hang":
        while True:
            time.sleep(0.05)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"double": 2 * work.value, "threads": torch.get_num_threads(), "pid": os.getpid(), "gpus": gpus}


def starts(folder: Path, kind: str, value: int = 0) -> int:
    return len(list(folder.glob(f"{kind}-{value}.*")))


def read(out: Path, id: str, name: str = "result") -> dict:
    return json.loads((job_folder(out, id) / f"{name}.json").read_text())
