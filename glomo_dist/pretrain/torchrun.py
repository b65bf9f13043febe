"""torchrun, which ends without a traceback when a signal asks it to: it has told the ranks, and they say what came of
it."""

from __future__ import annotations

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException

if __name__ == "__main__":
    try:
        run.main()
    except SignalException:
        sys.exit(1)
