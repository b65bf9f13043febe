"""Starts runs of pretraining quickly, again and again: the heavy imports happen once, each run is forked from there.

`python nursery.py` reads runs from stdin, one JSON object a line, and answers with the process ids of the ranks;
`Nursery` is the other side of it. The ranks do what `python -m glomo_dist.pretrain` does under torchrun, with a fault
put in (faults.py has the list).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glomo_dist.pretrain import PretrainConfig
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.runtime.config import from_dict, to_dict


@dataclass
class Group:
    """The ranks of one run; their messages are in `log`."""

    pids: list[int]
    log: Path
    _nursery: Nursery
    codes: dict[int, int] = field(default_factory=dict)

    def wait(self, seconds: float = 120.0) -> list[int]:
        """Exit codes by rank, negative for signals; AssertionError if they live on (they are killed then)."""
        until = time.monotonic() + seconds
        while len(self.codes) < len(self.pids):
            if not self._nursery.collect(until - time.monotonic()):
                for pid in self.pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"ranks did not end in {seconds:.0f} s:\n{self.log.read_text()[-4000:]}")
        return [self.codes[rank] for rank in range(len(self.pids))]

    @property
    def running(self) -> bool:
        self._nursery.collect(0.0)
        return len(self.codes) < len(self.pids)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[rank], number)


class Nursery:
    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
        }
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )
        self._buffer = b""
        self._groups: dict[int, Group] = {}
        self._count = 0

    def start(
        self,
        config: PretrainConfig,
        data: Path,
        out: Path,
        world: int = 2,
        fault: dict[str, Any] | None = None,
    ) -> Group:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self._count += 1
        log = out.with_name(f"{out.name}.{self._count}.log")
        request = {
            "id": self._count, "config": to_dict(config), "data": str(data), "out": str(out), "world": world,
            "port": port, "fault": fault or {}, "log": str(log),
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._groups[self._count] = group = Group([], log, self)
        while not group.pids:
            assert self.collect(60.0), "the nursery does not answer"
        return group

    def run(self, config: PretrainConfig, data: Path, out: Path, world: int = 2) -> Path:
        """A run without a fault, to its end."""
        group = self.start(config, data, out, world)
        assert group.wait(600.0) == [0] * world, group.log.read_text()[-4000:]
        return out

    def collect(self, seconds: float) -> bool:
        """Read an answer; False when none comes in time."""
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(0.0, seconds))[0]:
                return False
            part = self._process.stdout.read(65536)
            assert part, "the nursery has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        group = self._groups[answer["id"]]
        if "pids" in answer:
            group.pids = answer["pids"]
        else:
            group.codes[answer["rank"]] = answer["code"]
        return True

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


# the other side


def rank_of_run(request: dict[str, Any], rank: int) -> int:
    """One rank; returns its exit code."""
    known = set(sys.modules)
    from fault_injection import inject

    from glomo_dist.pretrain import worker
    from glomo_dist.runtime.errors import GlomoError

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request["world"]), MASTER_ADDR="127.0.0.1",
        LOCAL_WORLD_SIZE=str(request["world"]), MASTER_PORT=str(request["port"]),
    )  # fmt: skip
    try:
        config = from_dict(PretrainConfig, request["config"])
        job = resolve(config, request["data"], request["out"])
        inject(request["fault"], rank, job)
        worker.run(job)
        if rank == 0 and (new := [name for name in sys.modules if name not in known]):
            Path(MODULES.format(os.getppid())).write_text("\n".join(new))
    except GlomoError as e:
        print(f"glomo: rank {rank}: {type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


MODULES = os.path.join(tempfile.gettempdir(), "glomo-nursery-{}")


def import_all(modules: list[str]) -> None:
    """What a run imports while it runs; torch and DeepSpeed do much of that."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def serve() -> None:
    import deepspeed  # noqa: F401 (so that the ranks need not)
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    from glomo_dist.pretrain import worker  # noqa: F401

    children: dict[int, tuple[int, int]] = {}
    buffer, open_ = b"", True
    while open_ or children:
        if open_ and select.select([0], [], [], 0.005)[0]:
            content = os.read(0, 65536)
            open_, buffer = bool(content), buffer + content
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            request = json.loads(line)
            pids = []
            for rank in range(request["world"]):
                if (pid := os.fork()) == 0:
                    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                    os.dup2(log, 1), os.dup2(log, 2)
                    code = rank_of_run(request, rank)
                    sys.stderr.flush()
                    os._exit(code)
                pids.append(pid)
                children[pid] = (request["id"], rank)
            os.write(1, json.dumps({"id": request["id"], "pids": pids}).encode() + b"\n")
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in children:
                number, rank = children.pop(pid)
                answer = {"id": number, "rank": rank, "code": os.waitstatus_to_exitcode(status)}
                os.write(1, json.dumps(answer).encode() + b"\n")
                if (modules := Path(MODULES.format(os.getpid()))).exists():
                    import_all(modules.read_text().split())
                    modules.unlink()
                if answer["code"]:  # as torchrun does
                    for other, (of_group, _) in children.items():
                        if of_group == number:
                            os.kill(other, signal.SIGTERM)
        if not open_:
            time.sleep(0.01)


if __name__ == "__main__":
    serve()
