"""`torchrun ... -m glomo_dist.pretrain --job JOB.json`: one rank, as `launch.pretrain` starts it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from glomo_dist.pretrain.ranks import notice
from glomo_dist.pretrain.settings.config import PretrainConfig
from glomo_dist.pretrain.settings.resolve import resolve
from glomo_dist.runtime import collector, json_files
from glomo_dist.runtime.config import from_dict
from glomo_dist.runtime.errors import GlomoError, RankDied, RankTooLarge
from glomo_dist.runtime.progress import say

if __name__ == "__main__":
    collector.this_process_is_ours()
with collector.importing():
    from glomo_dist.pretrain import worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True, help="JSON: config, data, out, valid")
    parser.add_argument("--errors", help="where to write the message of an error instead of failing loudly")
    arguments = parser.parse_args()
    rank = os.environ.get("RANK", "0")
    try:
        value = json_files.read_json(arguments.job)
        config = from_dict(PretrainConfig, value["config"], arguments.job)
        job = resolve(config, value["data"], value["out"], value["valid"])
        worker.run(job, Path(arguments.errors) if arguments.errors else None)
    except GlomoError as e:
        # torchrun is to start the ranks again, if it may, only after what passes by itself
        if arguments.errors is None or not e.everywhere or isinstance(e, RankDied):
            if rank == "0" or not e.everywhere:
                say(f"glomo: rank {rank}: {e}")
            if arguments.errors is not None and isinstance(e, RankTooLarge):
                notice.leave(Path(arguments.errors), e)  # else the program would say to run it again
            sys.exit(e.exit_code)
        # All ranks agree on such an error and end here; a failing exit code would make torchrun add a page
        # of its own traceback to the one line that matters.
        if rank == "0" and not notice.leave(Path(arguments.errors), e):
            say(f"glomo: rank {rank}: {e}")
            sys.exit(e.exit_code)


if __name__ == "__main__":
    main()
