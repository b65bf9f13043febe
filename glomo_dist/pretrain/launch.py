"""Start a pretraining run from any program, or take part in one that torchrun has started."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

from glomo_dist.data import Address, Place
from glomo_dist.pretrain.output import hooks, run_folder
from glomo_dist.pretrain.output.claim import locked
from glomo_dist.pretrain.ranks import notice
from glomo_dist.pretrain.ranks.stopping import ending_at_once
from glomo_dist.pretrain.settings.config import PretrainConfig
from glomo_dist.pretrain.settings.resolve import ResolvedRun, resolve
from glomo_dist.runtime import errors, json_files, kernels, threads
from glomo_dist.runtime.config import MOST_PROCESSES, to_dict, whole
from glomo_dist.runtime.errors import ConfigError, GlomoError
from glomo_dist.runtime.fingerprint import COMMAND_VARIABLE, command_line
from glomo_dist.runtime.processes import same_imports, started_by_torchrun, usable_cores
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.signals import ASKING

# So that torchrun does not die of SIGUSR1 where a scheduler sends it to every process: its --signals-to-handle, as a
# variable, since older ones have no such option.
_SIGNALS = "SIGTERM,SIGUSR1"
# What a terminal sends to all processes: Ctrl-C, Ctrl-\, and when it is closed. torchrun and the ranks leave it to
# this program, which tells the ranks to save, or ends.
_OF_TERMINALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
STOP_SECONDS = 60.0  # for the ranks to save after they were asked to stop; then torchrun ends them


def pretrain(
    config: PretrainConfig,
    data: str | Place,
    out: str | Path,
    ranks: int = 1,
    *,
    valid: str | Place | None = None,
    restarts: int = 0,
) -> Path:
    """Train on the shards in `data` into the run folder `out` and return it; the model is then in out/model.

    The same call again goes on from the newest good checkpoint, and does nothing when the run is finished.
    ranks: processes on this machine; under torchrun (or SLURM around it) its own number counts and this
        process is one of them.
    valid: validation shards.  restarts: how often torchrun starts all ranks again after one died.
    Raises ConfigError, ShardError, CheckpointError (the folder holds another run, or nothing readable),
    GlomoError (the folder is in use or holds something else, the disk is full), Interrupted (SIGTERM or SIGUSR1, to
    this program or to a rank, or SIGHUP to this program: saved), RankDied, RankTooLarge (no memory), RankHung (the
    watchdog ended the run), and after Ctrl-C, saved too, KeyboardInterrupt.
    """
    if not isinstance(config, PretrainConfig):
        raise ConfigError(
            f"pretrain: config must be a PretrainConfig, got {config!r:.80}. glomo_dist.recipes.get gives that of a "
            'recipe by its name, e.g. get("tiny").'
        )
    with ending_at_once(out):  # the data may be far away, and its index large
        job = resolve(config, data, out, valid)
        for op in ("affinity_mix", "decoder_loss"):
            kernels.require(op)
        if not started_by_torchrun():
            asked = {
                "config": to_dict(config),
                "data": _spelt(data),
                "out": str(out),
                "valid": valid and _spelt(valid),
            }
            return _launch(
                job, asked, whole("ranks", ranks, 1, MOST_PROCESSES), whole("restarts", restarts, 0)
            )
        from glomo_dist.pretrain import worker  # and with it PyTorch, which only ranks need
    return worker.run(job)


def _launch(job: ResolvedRun, asked: dict[str, Any], ranks: int, restarts: int) -> Path:
    """Start the ranks, wait for them and tell how they ended. asked: what each rank is to resolve again."""
    hooks.require(job.config.trackers)
    finished = run_folder.finished_already(job.out, run_folder.describe(job, ranks))
    run_folder.remove_launches(job.out)
    if finished:
        return job.out
    with locked(job.out):  # fails here, at once, if another run is at work
        pass  # rank 0 takes the lock for good
    with run_folder.launch_folder(job.out) as scratch:
        job_file, error_file = scratch / "job.json", scratch / "error.json"
        json_files.write_json(job_file, asked)
        torchrun = Torchrun(ranks, restarts, scratch, ["--job", str(job_file), "--errors", str(error_file)])
        code = torchrun.wait()
        error = notice.take(error_file)
    if run_folder.finished(job.out):
        return job.out
    if torchrun.asked == signal.SIGINT.name:
        said = error["message"] if error else f"{job.out} was stopped before it could save."
        say(said.replace(signal.SIGTERM.name, "Ctrl-C", 1))  # which the ranks were sent
        raise KeyboardInterrupt
    if error is not None:
        how = " Run the same command again to continue from the last checkpoint."
        message = error["message"] + (how if error["type"] == "RankHung" else "")
        if torchrun.asked:
            message = message.replace(signal.SIGTERM.name, torchrun.asked, 1)
        raise getattr(errors, error["type"], GlomoError)(message)
    if torchrun.asked:
        raise errors.Interrupted(
            f"{torchrun.asked} stopped {job.out} before it could save. Run the same command again to continue from "
            "the last checkpoint."
        )
    raise errors.RankDied(
        f"pretraining into {job.out} ended with exit code {code}: a rank died (its message is above). "
        "Run the same command again to continue from the last checkpoint, with a smaller micro_batch if it was "
        "killed for want of memory."
    )


class Torchrun:
    """torchrun with ranks on this machine, on a free port; it ends with this program, even by kill -9.

    scratch: folder for its own files.  arguments: of each rank.
    asked: name of the signal that asked this program, and through it the ranks, to save and stop. A second Ctrl-C
        ends them at once.
    """

    def __init__(self, ranks: int, restarts: int, scratch: Path, arguments: list[str]) -> None:
        command = [
            sys.executable, "-m", "glomo_dist.pretrain.torchrun", "--standalone", f"--nproc-per-node={ranks}",
            f"--max-restarts={restarts}", f"--log-dir={scratch}", "-m", "glomo_dist.pretrain", *arguments,
        ]  # fmt: skip
        environment = {"OMP_NUM_THREADS": str(max(1, usable_cores() // ranks)), **os.environ}
        threads.wait_briefly(environment)
        environment[COMMAND_VARIABLE] = command_line()
        environment.update(same_imports())
        environment["PET_SIGNALS_TO_HANDLE"] = _SIGNALS
        self._scratch = scratch
        self.asked = ""
        self._told: set[int] = set()
        self._asked_at = math.inf
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            asking = [
                number for number in (*ASKING, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN
            ]
            self._handlers = {number: signal.signal(number, self._ask) for number in asking}
        self._process = subprocess.Popen(command, env=environment, preexec_fn=_prepare)

    def wait(self) -> int:
        """Its exit code; stderr of the ranks passes through."""
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return self._process.wait(0.2)
                if self.asked:
                    self._tell_ranks()
                if time.monotonic() - self._asked_at > STOP_SECONDS:
                    self._asked_at = math.inf
                    self._process.send_signal(signal.SIGTERM)  # it kills what has not ended in 30 s
        except BaseException:  # a second Ctrl-C or an exception from a signal handler: no rank may outlive us
            if self.asked == signal.SIGINT.name:
                self._signal_ranks(signal.SIGKILL)  # SIGTERM would ask them to save
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            raise
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked == signal.SIGINT.name:
            raise KeyboardInterrupt
        self.asked, self._asked_at = signal.Signals(number).name, time.monotonic()

    def _tell_ranks(self) -> None:
        """Ask each rank by itself: torchrun would forward the signal, too, but as a failure with a traceback.

        Those that have only begun to start, also again after one died, are not ready for it: they are told once
        they have left their number, in the place of that of the rank before.
        """
        self._told |= self._signal_ranks(signal.SIGTERM, self._told)

    def _signal_ranks(self, number: int, told: Collection[int] = ()) -> set[int]:
        """To those that have left their process id, but not to the `told`; returns their ids."""
        pids = {int(file.read_text()) for file in self._scratch.glob(f"*{notice.PID}")} - set(told)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids


def _spelt(folder: str | Place) -> str:
    """In full: as text an address hides what opens it."""
    return folder.url if isinstance(folder, Address) else str(folder)


def _prepare() -> None:
    """In torchrun before it begins: be told to end when this program is gone, even by kill -9 (Linux)."""
    for number in _OF_TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG, see prctl(2)
