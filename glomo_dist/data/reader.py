"""Reader processes: each answers the requests of its rank, one after the other, over a socket pair.

A message is JSON, then where there are numbers their bytes. The rank asks {"rows", "width"} with int64 [4, n] (shard,
start, length, row); the reader answers {"ok"} with the ids, {"error"}, or {"layout": shard} when it has to open a
shard, and gets that shard's part of the index. When either side ends, however it ends, the other sees the socket
close.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from glomo_dist.data.decode import Layout
from glomo_dist.data.gather import BadShard, Gatherer, Library, Request
from glomo_dist.data.index import ShardIndex
from glomo_dist.data.tarsamples import id_dtype
from glomo_dist.runtime.errors import GlomoError, RankDied, describe
from glomo_dist.runtime.processes import import_path

# A reader is no rank: what looks for ranks by these names must not find it, and it must not take itself for one.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NAMED = 3  # shards of a request, where a reader has died


class ShardReader(Protocol):
    """Answers one request at a time; raises BadShard or another GlomoError, RankDied where the reader has ended."""

    def read(self, request: Request) -> np.ndarray: ...

    def close(self) -> None: ...


class ReaderInProcess:
    """A reader without a process of its own."""

    def __init__(self, library: Library, index: ShardIndex) -> None:
        self._gatherer, self._lock = Gatherer(library, index.layout), threading.Lock()

    def read(self, request: Request) -> np.ndarray:
        with self._lock:
            return self._gatherer.gather(request)

    def close(self) -> None:
        with self._lock:
            self._gatherer.close()


class ReaderProcess:
    """The rank's side of a reader process."""

    def __init__(self, library: Library, index: ShardIndex) -> None:
        self._library, self._index = library, index
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        environment["PYTHONPATH"] = import_path()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "glomo_dist.data.reader", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=2,
            )  # fmt: skip
        self._connection = Connection(ours.detach())
        self._send(library.to_json())

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self, request: Request) -> np.ndarray:
        try:
            self._send({"rows": request.rows, "width": request.width}, np.stack(request[2:]))
            while True:
                answer = json.loads(self._connection.recv_bytes())
                if "layout" not in answer:
                    break
                layout = self._index.layout(answer["layout"])
                numbers = {name: getattr(layout, name) for name in ("bytes", "sha256", "vocab_size", "first")}
                self._send(numbers, np.stack([layout.offsets, layout.lengths]))
            if "error" in answer:
                error = answer["error"]
                raise BadShard(error, answer["shard"]) if answer["shard"] >= 0 else GlomoError(error)
            content = self._connection.recv_bytes()
        except (EOFError, OSError) as e:
            raise RankDied(self._last_words(request)) from e
        dtype = id_dtype(self._library.vocab_size)
        return np.frombuffer(bytearray(content), dtype).reshape(request.rows, request.width)

    def close(self) -> None:
        """Ends the process; from another thread too, whose `read` then fails."""
        with contextlib.suppress(OSError):  # closed already, by either side
            socket.socket(fileno=os.dup(self._connection.fileno())).shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._connection.closed:
            self._connection.close()

    def _send(self, value: dict[str, Any], numbers: np.ndarray | None = None) -> None:
        self._connection.send_bytes(json.dumps(value).encode())
        if numbers is not None:
            self._connection.send_bytes(np.ascontiguousarray(numbers, np.int64).tobytes())

    def _last_words(self, request: Request) -> str:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            code = 0
        names = [self._library.names[i] for i in np.unique(request.shard).tolist()]
        if len(names) > _NAMED:
            names = [*names[:_NAMED], f"{len(names) - _NAMED} others"]
        reason = f"ended with exit code {code}"
        if code < 0:
            reason = f"was killed by {signal.Signals(-code).name}"
            reason += {
                signal.SIGKILL: " (by somebody, or by the kernel for want of memory)",
                signal.SIGBUS: " (a file in the cache was cut while in use, or the disk failed)",
            }.get(signal.Signals(-code), "")
        return (
            f"a reader process (pid {self._process.pid}) {reason} while it read from {', '.join(names)}. Run the "
            "same command again to continue."
        )


def main() -> None:
    """A reader process: socket and parent's process id as arguments."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(
            number, signal.SIG_IGN
        )  # sent to the whole group; the rank decides when to end, and we follow
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(descriptor, parent), daemon=True).start()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the rank has ended or closed us
        _serve(connection)
    os._exit(0)  # threads of network libraries may hang


def _end_with(descriptor: int, parent: int) -> None:
    """End this process when the rank is gone, also in the middle of a request."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP)
    while not poll.poll(1000) and os.getppid() == parent:
        pass
    os._exit(0)


def _serve(connection: Connection) -> None:
    library = Library.from_json(json.loads(connection.recv_bytes()))

    def send(value: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(value).encode())

    def layout(shard: int) -> Layout:
        send({"layout": shard})
        numbers = json.loads(connection.recv_bytes())
        offsets, lengths = np.frombuffer(connection.recv_bytes(), np.int64).reshape(2, -1)
        return Layout(**numbers, offsets=offsets, lengths=lengths)

    gatherer = None
    while True:
        asked = json.loads(connection.recv_bytes())
        numbers = np.frombuffer(connection.recv_bytes(), np.int64).reshape(4, -1)
        try:
            gatherer = gatherer or Gatherer(library, layout)
            ids = gatherer.gather(Request(asked["rows"], asked["width"], *numbers))
        except GlomoError as e:
            send({"error": str(e), "shard": e.shard if isinstance(e, BadShard) else -1})
            continue
        except (
            OSError
        ) as e:  # as too many open files; where it is the rank that has ended, sending fails as well
            send({"error": f"a reader process cannot go on: {describe(e)}.", "shard": -1})
            continue
        send({"ok": True})
        connection.send_bytes(np.ascontiguousarray(ids).data.cast("B"))


if __name__ == "__main__":
    main()
