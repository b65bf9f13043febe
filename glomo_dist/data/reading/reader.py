"""Reader processes: each answers the requests of its rank, one after the other, over a socket pair.

A message is JSON, then where there are numbers their bytes. The rank asks {"rows", "width"} with int64 [4, n] (shard,
start, length, row); the reader answers {"ok"} with the ids, {"error"}, or {"layout": shard} when it has to open a
shard, and gets that shard's part of the index. When either side ends, however it ends, the other sees the socket
close. Only that ends a reader quietly: another error that is no GlomoError is a bug, and shown.
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
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from glomo_dist.data.reading.gather import BadShard, Gatherer, Library, Request
from glomo_dist.data.shards.decode import Layout
from glomo_dist.data.shards.index import ShardIndex
from glomo_dist.data.shards.tarsamples import id_dtype
from glomo_dist.runtime.errors import GlomoError, RankDied, describe
from glomo_dist.runtime.processes import same_imports

# A reader is no rank: what looks for ranks by these names must not find it, and it must not take itself for one.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_NAMED = 3  # shards in the message about a reader that has ended


class ShardReader(Protocol):
    """Answers one request at a time; raises BadShard or another GlomoError, RankDied where the reader has ended."""

    def read(self, request: Request) -> np.ndarray: ...

    def close(self) -> None: ...


class ReaderInProcess:
    """A reader without a process of its own."""

    def __init__(self, library: Library, index: ShardIndex) -> None:
        self._gatherer, self._lock = Gatherer(library, index.layout), threading.Lock()
        self._closed = False

    def read(self, request: Request) -> np.ndarray:
        with self._lock:
            if self._closed:  # by another thread; nobody would close what is opened now
                raise RankDied("the reader was closed.")
            return self._gatherer.gather(request)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._gatherer.close()


class ReaderProcess:
    """The rank's side of a reader process."""

    def __init__(self, library: Library, index: ShardIndex) -> None:
        self._library, self._index = library, index
        environment = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        environment.update(same_imports())
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [
                        sys.executable, "-m", "glomo_dist.data.reading.reader", str(theirs.fileno()), str(os.getpid())
                    ],
                    pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=2,
                )  # fmt: skip
        except OSError as e:
            raise GlomoError(
                f"a reader process cannot be started: {describe(e)}. Allow more open files and processes (ulimit -n, "
                "ulimit -u), or fewer readers (reading.readers)."
            ) from e
        self._connection = Connection(ours.detach())
        self._send(library.to_json())

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
        shards = np.unique(request.shard).tolist()
        read = ", ".join(self._library.names[i] for i in shards[:_NAMED])
        read += f" and {len(shards) - _NAMED} more" if len(shards) > _NAMED else ""
        reason = f"ended with exit code {code}"
        if code < 0:
            names = {one.value: one.name for one in signal.Signals}  # those for programs' own use have none
            name = names.get(-code, f"signal {-code}")
            reason = f"was killed by {name}"
            reason += {
                "SIGKILL": " (by somebody, or by the kernel for want of memory)",
                "SIGBUS": " (a file in the cache was cut while in use, or the disk failed)",
            }.get(name, "")
        return (
            f"a reader process (pid {self._process.pid}) {reason} while it read from {read}. Run the "
            "same command again to continue."
        )


def main() -> None:
    """A reader process: socket and parent's process id as arguments."""
    # sent to the whole group; the rank decides when to end, and we follow
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(descriptor, parent), daemon=True).start()
    code = 0
    try:
        _serve(Connection(descriptor))
    except _RankGone:
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)  # threads of network libraries may hang


def _end_with(descriptor: int, parent: int) -> None:
    """End this process when the rank is gone, also in the middle of a request."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP)
    while not poll.poll(1000) and os.getppid() == parent:
        pass
    os._exit(0)


class _RankGone(Exception):
    """The rank has ended, or closed the socket."""


@contextlib.contextmanager
def _with_rank() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as e:
        raise _RankGone from e


def _serve(connection: Connection) -> None:
    @_with_rank()
    def receive() -> bytes:
        return connection.recv_bytes()

    @_with_rank()
    def send(value: dict[str, Any], content: Any = None) -> None:
        connection.send_bytes(json.dumps(value).encode())
        if content is not None:
            connection.send_bytes(content)

    def layout(shard: int) -> Layout:
        send({"layout": shard})
        numbers = json.loads(receive())
        offsets, lengths = np.frombuffer(receive(), np.int64).reshape(2, -1)
        return Layout(**numbers, offsets=offsets, lengths=lengths)

    library = Library.from_json(json.loads(receive()))
    gatherer = None
    while True:
        asked = json.loads(receive())
        numbers = np.frombuffer(receive(), np.int64).reshape(4, -1)
        try:
            gatherer = gatherer or Gatherer(library, layout)
            ids = gatherer.gather(Request(asked["rows"], asked["width"], *numbers))
        except GlomoError as e:
            send({"error": str(e), "shard": e.shard if isinstance(e, BadShard) else -1})
            continue
        send({"ok": True}, np.ascontiguousarray(ids).data.cast("B"))


if __name__ == "__main__":
    main()
