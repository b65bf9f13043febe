"""torchrun, which ends without a traceback when a signal asks it to: it has told the ranks, and they say what came of
it."""

from __future__ import annotations

import os
import sys

from glomo_dist.pretrain.ranks import launcher
from glomo_dist.runtime import collector

if __name__ == "__main__":
    collector.this_process_is_ours()
with collector.importing():
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException

if __name__ == "__main__":
    os.environ[launcher.VARIABLE] = str(os.getpid())
    try:
        run.main()
    except SignalException:
        sys.exit(1)
