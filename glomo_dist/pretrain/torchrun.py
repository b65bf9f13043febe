"""torchrun, which ends without a traceback when a signal asks it to: it has told the ranks, and they say what came of
it."""

from __future__ import annotations

import os
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException

from glomo_dist.pretrain.ranks import launcher

if __name__ == "__main__":
    os.environ[launcher.VARIABLE] = str(os.getpid())
    try:
        run.main()
    except SignalException:
        sys.exit(1)
