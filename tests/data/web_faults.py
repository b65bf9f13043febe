"""An HTTP server on the loopback that serves a folder and does wrong what it is told to do wrong."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

Fault = Callable[["Handler", bytes], None]


class Server(http.server.ThreadingHTTPServer):
    """By file name: `faults` of the next requests, one each; `always` for every one; how often it was `asked` for.

    parts: whether it has parts of a file; `ranges`: which were asked for.  signs: whether it sends an ETag.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.asked: Counter[str] = Counter()
        self.parts = self.signs = False
        self.ranges: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        self.server.asked[name] += 1
        if "Range" in self.headers:
            self.server.ranges.append(self.headers["Range"])
        path = self.server.folder / name.removeprefix("moved/")
        waiting = self.server.faults.get(name, [])
        fault = waiting.pop(0) if waiting else self.server.always.get(name)
        with contextlib.suppress(ConnectionError):
            if not path.is_file():
                return self.send_error(404)
            content = path.read_bytes()
            if fault is not None:
                return fault(self, content)
            send(self, content)
        return None


def answer(
    handler: Handler, content: bytes, *, claim: int | None = None, code: int = 200, retry_after: str = ""
) -> None:
    handler.send_response(code)
    if retry_after:
        handler.send_header("Retry-After", retry_after)
    handler.send_header("Content-Length", str(len(content) if claim is None else claim))
    handler.end_headers()
    handler.wfile.write(content)


def send(
    handler: Handler, content: bytes, stop: int | None = None, most: int | None = None, packing: str = ""
) -> None:
    """What was asked for: the file, or a part.

    stop: bytes after which the connection ends.  most: bytes of a part that are given, whatever was asked for.
    """
    asked = (
        re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", "")) if handler.server.parts else None
    )
    body = content
    if asked:
        start = int(asked[1])
        body = content[start : int(asked[2]) + 1 if asked[2] else None][:most]
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    if handler.server.signs:
        handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
    if packing:
        handler.send_header("Content-Encoding", packing)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:stop])
    if stop is not None:
        handler.wfile.flush()
        time.sleep(0.1)  # else the reader may lose what it has not yet taken
        handler.close_connection = True


def cut_after(size: int) -> Fault:
    return lambda handler, content: send(handler, content, size)


def reset_after(size: int) -> Fault:
    def reset(handler: Handler, content: bytes) -> None:
        send(handler, content, size)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return reset


def stall_after(size: int) -> Fault:
    def stalled(handler: Handler, content: bytes) -> None:
        send(handler, content, size)
        time.sleep(1)

    return stalled


def small_part(handler: Handler, content: bytes) -> None:
    send(handler, content, most=30_000)


def replaced(by: bytes) -> Fault:
    """From now on the file is another one."""

    def replace(handler: Handler, content: bytes) -> None:
        (handler.server.folder / handler.path.partition("?")[0].lstrip("/")).write_bytes(by)
        send(handler, by)

    return replace


def packed(stop: int | None = None) -> Fault:
    """Packed on the way, parts too, though nobody asked for it."""

    def pack(handler: Handler, content: bytes) -> None:
        send(handler, gzip.compress(content, mtime=0), stop, packing="gzip")

    return pack


def code(number: int, retry_after: str = "") -> Fault:
    return lambda handler, content: answer(handler, b"no", code=number, retry_after=retry_after)


def server_error(handler: Handler, content: bytes) -> None:
    answer(handler, b"try later", code=503)


def cut_body(handler: Handler, content: bytes) -> None:
    answer(handler, content[: len(content) // 2], claim=len(content))
    handler.close_connection = True


def cut_without_saying(handler: Handler, content: bytes) -> None:
    answer(handler, content[: len(content) // 2])


def wrong_bytes(handler: Handler, content: bytes) -> None:
    damaged = bytearray(content)
    damaged[len(content) // 3] ^= 1
    answer(handler, bytes(damaged))


def too_long(handler: Handler, content: bytes) -> None:
    answer(handler, content + bytes(4096))


def html(handler: Handler, content: bytes) -> None:
    answer(handler, b"<!DOCTYPE html><title>Please sign in</title>")


def redirect(handler: Handler, content: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", f"/moved{handler.path}")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def redirect_to_file(handler: Handler, content: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", "file:///etc/passwd")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def stall(handler: Handler, content: bytes) -> None:
    answer(handler, content[:1000], claim=len(content))
    time.sleep(20)


def trickle(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for at in range(len(content)):
        handler.wfile.write(content[at : at + 1])
        handler.wfile.flush()
        time.sleep(0.05)


def hang_up(handler: Handler, content: bytes) -> None:
    handler.close_connection = True


def no_permission(handler: Handler, content: bytes) -> None:
    answer(handler, b"no", code=403)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
