"""The group of processes of a run: who am I, which device, and the few collectives that the loop needs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from glomo_dist.runtime import collector
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.fingerprint import COMMAND_VARIABLE
from glomo_dist.runtime.processes import usable_cores

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of the `world` processes of a run; it computes on `device`."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64 (exact for integers below 2^53)."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def from_first(self, function: Callable[[], T]) -> T:
        """Run `function` on rank 0 alone; every rank gets its result, or raises its GlomoError."""
        box: list[object] = [None, None]
        if self.first:
            try:
                box[0] = function()
            except GlomoError as e:
                box[1] = e
        dist.broadcast_object_list(box, src=0, device=self.device)
        _raise_everywhere(box[1])
        return box[0]  # type: ignore[return-value]

    def on_each(self, function: Callable[[], T]) -> T:
        """Run `function` on every rank; each gets its own result, or all raise the first GlomoError of any."""
        error = None
        try:
            result = function()
        except GlomoError as e:
            error = e
        self.agree_on(error)
        return result

    def agree_on(self, error: GlomoError | None) -> None:
        """Raise, on every rank, the error of the first rank that has one."""
        _raise_everywhere(next((e for e in self.gather(error) if e is not None), None))

    def gather(self, value: T) -> list[T]:
        """Every rank's `value` (anything that pickles; the ranks trust each other), on every rank."""
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()


def _raise_everywhere(error: object) -> None:
    if isinstance(error, GlomoError):
        error.everywhere = True
        raise error


def join(timeout_minutes: float = 30.0) -> Ranks:
    """Join the group that the environment describes: nccl with one GPU per rank, gloo on CPU without GPUs.

    DeepSpeed's process group is used. Its optional shared-memory kernel, which only inference calls, would be
    compiled for about a minute at the first start: it is declared unavailable before the group is made.
    """
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    with collector.importing():
        import deepspeed  # slow, and it reads DS_ACCELERATOR when imported

    # DeepSpeed calls a torch function that torch 2.13 renames; nothing a user could act on
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*reduce_scatter_tensor.*deprecated", category=FutureWarning)
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})
    rank, world, local_rank = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise GlomoError(
                f"rank {rank} wants GPU {local_rank}, this machine has {torch.cuda.device_count()}. Start at "
                "most that many ranks per machine, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPU."
            )
        torch.cuda.set_device(local_rank)
        _same_bits_on_every_run()
    if COMMAND_VARIABLE not in os.environ:  # the user's own torchrun, which tells each rank to use one thread
        torch.set_num_threads(max(1, usable_cores() // local_world))
    timeout, backend = timedelta(minutes=timeout_minutes), "nccl" if cuda else "gloo"
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, store=_fresh(store, rank, world), rank=rank, world_size=world, timeout=timeout
    )
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)  # takes that group
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Ranks(rank, world, device)


def _same_bits_on_every_run() -> None:
    """On a GPU: sums in a fixed order, so that a resumed run is the uninterrupted one.

    torch's default is atomic sums; where it has no other way it warns. The Triton kernels then take their first
    configuration, not the fastest of those they would have timed.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _fresh(store: Any, rank: int, world: int) -> Any:
    """A part of `store` that is only of this start of the ranks.

    torchrun keeps its store when it restarts the ranks, with the addresses under which they could be reached before,
    and torch takes those (it hangs in its second group). So rank 0 proposes a new name, and the others believe it
    once it has repeated what they have just drawn.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("glomo/start", mine)
        drawn = {str(other): store.get(f"glomo/{mine}/{other}").decode() for other in range(1, world)}
        store.set(f"glomo/{mine}/drawn", json.dumps(drawn))
        return dist.PrefixStore(mine, store)  # type: ignore[attr-defined]
    while True:
        start = store.get("glomo/start").decode()
        store.set(f"glomo/{start}/{rank}", mine)
        with contextlib.suppress(dist.DistStoreError):
            store.wait([f"glomo/{start}/drawn"], timedelta(seconds=1))
            if json.loads(store.get(f"glomo/{start}/drawn")).get(str(rank)) == mine:
                return dist.PrefixStore(start, store)  # type: ignore[attr-defined]
        time.sleep(0.05)


def machine() -> str:
    """Names what shares process ids with this process: a host, or a container on it."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def leave() -> None:
    """End the group that `join` has joined, if it could."""
    if dist.is_initialized():
        dist.destroy_process_group()
