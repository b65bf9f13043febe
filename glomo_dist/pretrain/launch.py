"""Start a pretraining run from any program, or take part in one that torchrun has started."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from glomo_dist.data import Address, Place
from glomo_dist.pretrain import run_folder, worker
from glomo_dist.pretrain.config import PretrainConfig
from glomo_dist.pretrain.ranks import cores, started_by_torchrun
from glomo_dist.runtime import errors, files
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import GlomoError
from glomo_dist.runtime.fingerprint import COMMAND_VARIABLE, command_line
from glomo_dist.runtime.progress import say


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
    GlomoError (the folder is in use or holds something else; a rank died).
    """
    job = run_folder.resolve(config, data, out, valid)
    if started_by_torchrun():
        return worker.run(job)
    if ranks < 1:
        raise errors.ConfigError(f"ranks must be at least 1, got {ranks}.")
    if run_folder.check(job.out, run_folder.describe(job, ranks)) and run_folder.finished(job.out):
        say(f"{job.out} is finished already; the model is in {job.out / run_folder.MODEL}")
        return job.out
    with run_folder.locked(job.out):
        pass  # fails here, at once, if another run is at work; rank 0 takes the lock for good
    with tempfile.TemporaryDirectory(prefix="glomo-pretrain-") as scratch:
        job_file, error_file = Path(scratch, "job.json"), Path(scratch, "error.json")
        value = {
            "config": to_dict(config),
            "data": _spelt(data),
            "out": str(out),
            "valid": valid and _spelt(valid),
        }
        files.write_json(job_file, value)
        code = _torchrun(ranks, restarts, ["--job", str(job_file), "--errors", str(error_file)])
        if error_file.exists():
            error = files.read_json(error_file)
            raise getattr(errors, error["type"], GlomoError)(error["message"])
    if code != 0:
        raise GlomoError(
            f"pretraining into {job.out} ended with exit code {code}: a rank died (its message is above). "
            "Run the same command again to continue from the last checkpoint."
        )
    return job.out


def _spelt(folder: str | Place) -> str:
    """In full: as text an address hides what opens it."""
    return folder.url if isinstance(folder, Address) else str(folder)


def _end_with_parent() -> None:
    """In torchrun before it begins: be told to end when this program is gone, even by kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG, see prctl(2)


def _torchrun(ranks: int, restarts: int, arguments: list[str]) -> int:
    """Exit code of torchrun with `ranks` workers on this machine and a free port; stderr passes through."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}", "-m", "glomo_dist.pretrain", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // ranks))}
    environment[COMMAND_VARIABLE] = command_line()
    # this package and its neighbours must be found there as they were found here, installed or not
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent)
    try:
        return process.wait()
    except BaseException:  # Ctrl-C or an exception from a signal handler: no rank may outlive us
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
