"""Hosts, a SLURM stand-in and runs for the tests of cluster/."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from glomo_dist.runtime.processes import import_path

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
STAND_INS = Path(__file__).with_name("stand_ins")

# A run of about 5 s of steps on two cores: long enough to be met by a fault in the middle.
STEPS = 60
RUN = ("--recipe", "tiny", "--steps", str(STEPS), "--checkpoint-every", "10")


def environment(**more: str) -> dict[str, str]:
    """Of all launches: this interpreter and checkout, CPU, one thread per rank."""
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": import_path(),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "RANKS_PER_NODE": "1",
        "LOST_SECONDS": "5",
        **more,
    }


def wait_until(happened: Callable[[], object], seconds: float, what: str) -> float:
    """Seconds it took; AssertionError naming `what` when it does not happen in time."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() < began + seconds, f"{what}: not in {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began


class Network:
    """Local hosts node-0 and node-1, and what was started on them; output goes to folder/NODE.log."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.started: list[subprocess.Popen[bytes]] = []

    def hosts(self, *words: str) -> subprocess.CompletedProcess[str]:
        action, *rest = words
        command = [str(CLUSTER / "local" / "hosts.py"), action, "--name", self.name, *rest]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def start(self, node: str, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [str(CLUSTER / "local" / "hosts.py"), "run", "--name", self.name, node, "--", *words]
        with open(self.log(node), "ab") as log:
            process = subprocess.Popen(
                command,
                env=environment(**variables),
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def pretrain(
        self, index: int, shards: Path, out: Path, *settings: str, **variables: str
    ) -> subprocess.Popen[bytes]:
        """That host's part of a run over both hosts."""
        variables = {"NODES": "2", "NODE_INDEX": str(index), "MEET": "node-0:29500", **variables}
        words = (str(CLUSTER / "pretrain_host.sh"), str(shards), "--out", str(out), *RUN, *settings)
        return self.start(f"node-{index}", *words, **variables)

    def log(self, node: str) -> Path:
        return self.folder / f"{node}.log"

    def said(self, node: str) -> str:
        return self.log(node).read_text(errors="replace") if self.log(node).exists() else ""

    def end(self, number: int) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(number)
        for process in self.started:
            process.wait(60)


class Slurm:
    """What sbatch does with a script: starts it with its variables, and again when it was requeued.

    network: of local hosts that are the job's nodes; None: all of them are this machine.
    """

    def __init__(
        self,
        script: str,
        folder: Path,
        arguments: tuple[str, ...],
        nodes: int = 2,
        network: str | None = None,
        **more: str,
    ) -> None:
        self.script, self.folder, self.arguments = CLUSTER / "slurm" / script, folder, arguments
        self.starts = 0
        nodelist = ",".join(f"node-{i}" for i in range(nodes)) if network else ",".join(["localhost"] * nodes)
        self.variables = environment() | {
            "PATH": f"{STAND_INS}{os.pathsep}{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": nodelist,
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_CPUS_ON_NODE": "2",
            "STAND_IN_NODES": nodelist,
            "STAND_IN_NETWORK": network or "",
            "STAND_IN_STATE": str(folder),
            **more,
        }

    def start(self, **more: str) -> subprocess.Popen[bytes]:
        variables = {**self.variables, **more}
        if self.starts:
            variables["SLURM_RESTART_COUNT"] = str(self.starts)
        self.starts += 1
        (self.folder / "requeued").unlink(missing_ok=True)
        with open(self.folder / "job.log", "ab") as log:
            command = ["bash", str(self.script), *self.arguments]
            return subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)

    def run(self, **more: str) -> int:
        return self.start(**more).wait(120)

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()

    @property
    def said(self) -> str:
        return (self.folder / "job.log").read_text(errors="replace")

    def calls(self, node: int | str) -> list[str]:
        """Lines of the stand-in for the interpreter on that node ("x": where no node is told)."""
        path = self.folder / f"calls-{node}"
        return path.read_text().splitlines() if path.exists() else []


def directives(script: Path) -> dict[str, str]:
    """The #SBATCH options of a script."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE)
    return dict(found)


def step_reached(out: Path) -> int:
    """Rows of the run's log so far."""
    path = out / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("", 0))
        return str(s.getsockname()[1])


def left_by_stand_ins(folder: Path) -> list[str]:
    """Processes that were started with STAND_IN_STATE=folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"STAND_IN_STATE={folder}\0".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
