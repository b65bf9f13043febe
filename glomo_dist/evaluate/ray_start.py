"""Ray for as long as an evaluation needs it: a local one, started and stopped here, or a cluster by its address."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.processes import environment, usable_cores
from glomo_dist.runtime.signals import ASKING

OBJECT_STORE_BYTES = 100 << 20  # results are files; Ray's minimum is about 75 MB
# Ray puts its sockets below its folder, at /session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store, and the
# system takes paths of 103 (macOS) or 107 bytes. So the folder is not in the output folder.
FOLDER_PREFIX = "glomo-ray-"
LONGEST_PARENT = 20
WITHOUT_RAY = "`--executor process` runs the jobs without it."

# Read by Ray when it is imported or started.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
# Of a Ray that is started here: it has no dashboard to show what tasks did, and at the end would wait five seconds to
# hand it to processes that a signal to the whole process group may have ended.
WITHOUT_TASK_EVENTS = {"RAY_task_events_report_interval_ms": "0"}


@contextlib.contextmanager
def running_ray(cores: int | None = None, address: str | None = None) -> Iterator[bool]:
    """Ray for the duration of the block, unless this process already has one. Yields whether it is left at the end,
    which ends all that runs there.

    cores, address: as in `RayExecutor`. Raises GlomoError where it does not start or no cluster answers.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address is not None and _knows_a_token():
        # `ray start --head` does so by itself, `init` does not
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    _keeping_signals(partial(importlib.import_module, "ray"))
    import ray

    if ray.is_initialized():
        yield False
        return
    with contextlib.ExitStack() as at_the_end:
        own = {} if address is not None else WITHOUT_TASK_EVENTS
        at_the_end.enter_context(environment(**{n: v for n, v in own.items() if n not in os.environ}))
        if address is not None:
            at_the_end.callback(ray.shutdown)
            _connect(address)
        else:
            folder = at_the_end.enter_context(_folder())
            at_the_end.callback(ray.shutdown)
            _start(folder, cores)
        yield True


def _connect(address: str) -> None:
    import ray

    try:
        _require_listening(address)
        _keeping_signals(partial(ray.init, address=address, logging_level=logging.ERROR, log_to_driver=False))
    except Exception as e:
        if any("RAY_AUTH_TOKEN" in text for text in _chain(e)):  # Ray's advice, in all its words about tokens
            raise GlomoError(
                f"the Ray cluster at {address!r} asks for a token; there is none here, or it is a wrong one. It is "
                "looked for in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names and in ~/.ray/auth_token: "
                "put the one there that the cluster was started with."
            ) from e
        raise GlomoError(
            f"no Ray cluster at {address!r}: {e}. Start one (`ray start --head`) or leave the address out."
        ) from e


def _start(folder: str, cores: int | None) -> None:
    import ray

    init = partial(
        ray.init,
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=usable_cores() if cores is None else cores,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,
        log_to_driver=False,
        configure_logging=True,
        _temp_dir=folder,
    )
    try:
        with environment(PYTHONPATH=os.pathsep.join(_import_paths())):
            _keeping_signals(init)
    except Exception as e:
        raise _not_started(e) from e


def _not_started(error: Exception) -> GlomoError:
    why = str(error).rstrip(".\n") or type(error).__name__
    return GlomoError(f"Ray did not start here: {why}. {WITHOUT_RAY}")


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """For what Ray writes, where its sockets' paths are short enough."""
    try:
        parent = tempfile.gettempdir()
        if len(os.fsencode(parent)) > LONGEST_PARENT:
            parent = "/tmp"
        folder = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=parent, ignore_cleanup_errors=True)
    except OSError as e:
        raise _not_started(e) from e
    with folder as path:
        yield path


def _keeping_signals(start: Callable[[], object]) -> None:
    """Call `start`, which imports or starts Ray, without a signal being lost.

    When it starts Ray takes SIGTERM for itself: it prints its own stack and dies. Put back what was set here.
    """
    if threading.current_thread() is not threading.main_thread():
        start()
        return
    numbers = (signal.SIGINT, *ASKING)
    before: dict[int, Any] = {n: handler for n in numbers if (handler := signal.getsignal(n)) is not None}
    ours = before.get(signal.SIGTERM)
    reading, writing = socket.socketpair()

    def give_back() -> None:
        signal.set_wakeup_fd(woken)
        # After a signal ours ignores the next ones, so that nothing breaks into the shutdown: leave that.
        if ours is not None and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, ours)

    with reading, writing:
        for end in (reading, writing):
            end.setblocking(False)
        woken = signal.set_wakeup_fd(writing.fileno())  # is told whoever handles a signal
        try:
            try:
                start()
            finally:
                give_back()
        except SystemExit:
            # What Ray makes of the signal while it starts, or only now: one that came during a long call of compiled
            # code is handled at the next line of Python, which may be that of `give_back`.
            give_back()
            if callable(ours):
                ours(signal.SIGTERM, None)
            raise
        with contextlib.suppress(BlockingIOError):  # none came
            for number in reading.recv(1 << 10):
                if number in before:  # and was dropped, as what is raised in a `__del__` is
                    signal.signal(number, before[number])
                    signal.raise_signal(number)


def _chain(error: BaseException | None) -> Iterator[str]:
    """What an exception says, and those it came from."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def _knows_a_token() -> bool:
    """Whether there is a token to show to a cluster that asks for one, in one of the places where Ray looks."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or Path.home().joinpath(".ray", "auth_token").exists()


def _require_listening(address: str) -> None:
    """Raise OSError at once where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _import_paths() -> list[str]:
    """What this process can import beyond its Python's own folders, so that workers can, from any folder."""
    own = tuple(prefix + os.sep for prefix in (sys.prefix, sys.base_prefix))
    found = [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]
    return list(dict.fromkeys(path for path in found if not path.startswith(own)))
