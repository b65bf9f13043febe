"""torchrun, ending with the exit code of the ranks instead of 1, so that a scheduler can tell what to do.

The code of the rank that failed first: 75 when the run was asked to stop and has saved (start the same command
again), otherwise see docs/reliability.md; 128 + n for a rank that signal n ended. 75 as well when torchrun itself was
asked to stop: its ranks were told, by SIGTERM or SIGUSR1, after which they save, and had
TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds. 69 when the first host was lost or never met, 2 where there is no GPU for
RANKS_PER_NODE=gpu.

MEET, NODE_INDEX, RANKS_PER_NODE and LOST_SECONDS as in pretrain_host.sh. On all hosts but the first a thread looks
whether the first one still answers: torchrun by itself goes on waiting when packets vanish and no RST comes; its
first read of the shared store times out, the one after it does not (torch 2.13: still there after ten minutes).
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import psutil
import torch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

STOPPED, NO_MEETING, WRONG = 75, 69, 2  # EX_TEMPFAIL, EX_UNAVAILABLE of sysexits.h


def main() -> None:
    if os.environ.get("RANKS_PER_NODE") == "gpu" and not torch.cuda.is_available():
        say("no GPU that torch can use here: set RANKS_PER_NODE to a number to train on CPUs")
        sys.exit(WRONG)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a script's &
            signal.signal(number, stop)
    if os.environ.get("NODE_INDEX", "0") != "0":
        host, _, port = os.environ["MEET"].rpartition(":")
        words = (host.strip("[]"), int(port), float(os.environ.get("LOST_SECONDS", "30")))
        threading.Thread(target=end_without_first_host, args=words, daemon=True).start()
    try:
        run.main()
    except SignalException as e:
        say(f"asked to stop ({e}); the ranks were told")
        sys.exit(STOPPED)
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        say(f"rank {rank} ended first, with exit code {code}; its message is above")
        sys.exit(code)
    except RendezvousError as e:
        say(f"the meeting of the hosts failed: {e} ({e.__cause__})")
        sys.exit(NO_MEETING)


def stop(number: int, frame: FrameType | None) -> None:
    """As torchrun does, but the ranks get SIGTERM: they do not save after other signals."""
    raise SignalException(f"Process {os.getpid()} got signal: {number}", signal.SIGTERM)


def end_without_first_host(host: str, port: int, seconds: float) -> None:
    """End the ranks here and this process once host:port has not answered for so long."""
    answered = time.monotonic()
    while (silent := time.monotonic() - answered) < seconds:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=min(5.0, seconds / 2)).close()
            answered = time.monotonic()
        time.sleep(min(5.0, seconds / 4))
    say(f"the first host has not answered at {host}:{port} for {silent:.0f} s; ending the ranks here")
    ranks = psutil.Process().children()
    for number, grace in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, number)  # torchrun gives each rank a group of its own
        psutil.wait_procs(ranks, grace)
    os._exit(NO_MEETING)  # the main thread may be stuck


def say(text: str) -> None:
    print(f"torchrun: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
