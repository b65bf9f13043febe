"""torchrun, ending with the exit code of the ranks instead of 1, so that a scheduler can tell what to do.

The code of the rank that failed first: 75 when the run was asked to stop and has saved (start the same command
again), otherwise see docs/reliability.md; 128 + n for a rank that signal n ended. 75 as well when torchrun itself was
asked to stop: its ranks were told, and had TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds. 69 when the first host was lost or
never met.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

STOPPED, NO_MEETING = 75, 69  # EX_TEMPFAIL, EX_UNAVAILABLE of sysexits.h


def main() -> None:
    try:
        run.main()
    except SignalException as e:
        say(f"{e.sigval.name} came, the ranks were told to stop")
        sys.exit(STOPPED)
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        say(f"rank {rank} ended first, with exit code {code}; its message is above")
        sys.exit(code)
    except RendezvousError as e:
        say(f"the meeting of the hosts failed: {e} ({e.__cause__})")
        sys.exit(NO_MEETING)


def say(text: str) -> None:
    print(f"torchrun: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
