"""One small process beside each rank that notices when the rank hangs, says where, and ends it.

The rank tells it of every finished part of a step. When nothing came for longer than the limit, the process writes
the rank's Python stacks to stderr (those of the other ranks on this machine too) and kills the rank; torchrun then
ends or restarts the job. It works when the rank is stopped (SIGSTOP), stuck in a collective or in a read, or holds
the interpreter lock, since none of that concerns this process. It also ends a rank that waits for one that has
died, and asks the rank to stop (SIGTERM) when the launcher above it is gone.

`python watchdog.py JSON` is that process: it uses only the standard library, so that it is small and starts fast.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 900.0  # least limit until the first step is done: building, loading, compiling
DEAD_PEER_SECONDS = 3.0  # without progress after a rank on this machine has died
STARTS = 3  # that fail, one after the other, before the run goes on without a watchdog
WORKED_SECONDS = 10.0  # what has taken signs of life for so long had not failed to start
GRACE_SECONDS = 3.0  # between stacks and kill, so that the other ranks' stacks are taken from life
STACKS = signal.SIGUSR2  # makes a rank write its stacks


class Watchdog:
    """The rank's side. timeout: seconds without progress; what comes before the data of a step is never excused.

    peers: process ids of the other ranks on this machine.  notice: JSON file for the launcher, as an error is.
    """

    def __init__(self, timeout: float, rank: int, peers: Sequence[int], notice: Path | None) -> None:
        self._timeout, self._step, self._warm = timeout, 0, False
        self._rank, self._notice, self._peers = rank, str(notice or ""), list(peers)
        self._failed, self._stacks, self._began, self._heard = 0, -1, 0.0, 0.0
        self._start()
        self.beat("begin")

    def _start(self) -> None:
        stacks_out, stacks_in = os.pipe()
        watched = {
            "pid": os.getpid(), "parent": os.getppid(), "rank": self._rank, "timeout": self._timeout,
            "stacks": stacks_out, "notice": self._notice, "peers": self._peers,
        }  # fmt: skip
        command = [sys.executable, "-I", "-S", __file__, json.dumps(watched)]
        # the rank's environment, as Python may need it, but it is not to be taken for a rank
        environment = {name: value for name, value in os.environ.items() if name != "RANK"}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=(stacks_out,), env=environment
            )
        except OSError:
            os.close(stacks_in)
            raise
        finally:
            os.close(stacks_out)
        self._began = time.monotonic()
        faulthandler.register(STACKS, file=stacks_in, all_threads=True, chain=False)
        if self._stacks >= 0:
            os.close(self._stacks)
        self._stacks = stacks_in
        assert self._process.stdin is not None
        self._to = self._process.stdin.fileno()
        os.set_blocking(self._to, False)  # a stopped watchdog must not stop the training

    def beat(self, part: str, step: int | None = None) -> None:
        """`part` is done. Cheap: one write of a few bytes."""
        self._step = self._step if step is None else step
        excused = not self._warm and part in ("begin", "data", "forward", "backward")
        limit = max(self._timeout, START_SECONDS) if excused else self._timeout
        self._warm = self._warm or part == "optimizer"
        if self._failed == STARTS:
            return
        try:
            os.write(self._to, f"{limit} {self._step} {part}\n".encode())
            self._heard = time.monotonic()
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._replace()
            self.beat(part)

    def _replace(self) -> None:
        """Another process for one that has ended; none where several in a row could not work."""
        self.close()
        code = self._process.returncode or 0  # negative: of a signal
        worked = self._heard - self._began > WORKED_SECONDS
        self._failed = 0 if code <= 0 else 1 if worked else self._failed + 1
        ended = f"ended with exit code {code}" if code > 0 else "was killed"
        if self._failed < STARTS:
            try:
                self._start()
            except OSError as e:
                ended, self._failed = f"{ended} and no other can be started ({e})", STARTS
        then = "another one takes its place"
        if self._failed == STARTS:
            then = "the run goes on unwatched: a rank that hangs is not ended"
        print(f"WARNING: the watchdog of rank {self._rank} {ended}; {then}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """The rank has nothing left to wait for."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)


class _Guard:
    """The process's side: watches one rank, as the one argument in JSON says, whose keys are the parameters.

    parent: process id of the launcher above the rank.  stacks: descriptor from which the rank's stacks are read.
    """

    def __init__(
        self, *, pid: int, parent: int, rank: int, timeout: float, stacks: int, notice: str, peers: list[int]
    ) -> None:
        self._pid, self._parent, self._rank, self._timeout = pid, parent, rank, timeout
        self._stacks, self._notice, self._peers = stacks, notice, peers
        self._limit, self._step, self._part, self._line = timeout, "0", "begin", b""
        # counted in own ticks: time in which this process was stopped, too, is nobody's fault
        self._idle = 0.0
        self._stopped: dict[int, float] = {}
        self._open = True

    def run(self) -> None:
        while self._open:
            self._tick(0.25)
            parent = _parent_of(self._pid)
            if parent not in (self._parent, None):
                self._say("the launcher above it is gone: asking it to save and stop")
                self._parent = parent
                self._kill(self._pid, signal.SIGTERM)
            if reason := self._reason():
                self._end(*reason)

    def _tick(self, seconds: float) -> None:
        """Wait for a sign of life or for stacks, at most so long."""
        before = time.monotonic()
        ready, _, _ = select.select([0, self._stacks], [], [], seconds)
        self._idle += min(time.monotonic() - before, 4 * seconds)
        if 0 in ready:
            content = os.read(0, 65536)
            self._open = bool(content)
            *lines, self._line = (self._line + content).split(b"\n")
            if lines:
                limit, self._step, self._part = lines[-1].decode().split(" ", 2)
                self._limit, self._idle = float(limit), 0.0
        if self._stacks in ready:
            self._show_stacks()
        for pid in (self._pid, *self._peers):
            stopped = self._stopped.get(pid, 0.0) + min(time.monotonic() - before, 4 * seconds)
            self._stopped[pid] = stopped if _state(pid) == "T" else 0.0

    def _reason(self) -> tuple[str, bool] | None:
        """Why the rank has to go, and whether its stacks are of interest; None while all is well."""
        if not self._open:
            return None
        if self._idle > self._limit:
            return f"no progress for {self._idle:.0f} s (limit {self._limit:.0f} s)", True
        for pid, seconds in self._stopped.items():
            if seconds > self._timeout:
                whose = "it is" if pid == self._pid else f"process {pid} of another rank is"
                return f"{whose} stopped (SIGSTOP) for {seconds:.0f} s (limit {self._timeout:.0f} s)", True
        if self._idle > DEAD_PEER_SECONDS:
            for pid in self._peers:
                if _state(pid) in ("Z", "X", ""):
                    return f"process {pid} of another rank has died", False
        return None

    def _end(self, reason: str, with_stacks: bool) -> None:
        state = {"T": "stopped", "D": "waiting for a disk or device"}.get(_state(self._pid), "running")
        where = f"last finished: {self._part} of step {self._step}"
        self._say(f"{reason}; {where}; process state: {state}")
        if with_stacks:
            for pid in (self._pid, *self._peers):
                self._kill(pid, STACKS)
            waited, idle = 0.0, self._idle
            while waited < GRACE_SECONDS and self._open:
                before = time.monotonic()
                self._tick(0.25)
                waited += time.monotonic() - before
            if self._idle < idle:
                self._say("it goes on, so it is left alone")
                return
            self._kill(self._pid, signal.SIGCONT)  # a stopped process can say nothing before
            if state == "stopped":
                self._tick(2.0)
            self._write_notice(f"rank {self._rank} hung ({reason}; {where}).")
        self._kill(self._pid, signal.SIGKILL)
        self._open = False

    def _show_stacks(self) -> None:
        content = b""
        while select.select([self._stacks], [], [], 0.3)[0] and (part := os.read(self._stacks, 65536)):
            content += part
        if content:  # else the rank has ended
            self._say("stacks:\n" + content.decode(errors="replace").rstrip())

    def _write_notice(self, message: str) -> None:
        if not self._notice:
            return
        with contextlib.suppress(OSError):  # the launcher is gone, or another rank was first
            file = os.open(self._notice, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(file, json.dumps({"type": "RankHung", "message": message}).encode())
            os.close(file)

    def _say(self, message: str) -> None:
        text = (
            f"glomo watchdog: rank {self._rank} (process {self._pid} on {socket.gethostname()}): {message}\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, text.encode())

    def _kill(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, parent, ...; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str:
    """T stopped, Z dead, ...; "" when gone, "?" where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return "?"
    fields = _stat(pid)
    return fields[0] if fields else ""


def _parent_of(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def main(watched: str) -> None:
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)  # they mean the rank; this process ends after it
    _Guard(**json.loads(watched)).run()


if __name__ == "__main__":
    main(sys.argv[1])
