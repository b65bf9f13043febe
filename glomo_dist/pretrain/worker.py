"""One rank of a run: joins the group, holds the run folder, is watched, trains."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from glomo_dist.pretrain.loop import train
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.output.claim import Claim, locked
from glomo_dist.pretrain.ranks import group, launcher
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.pretrain.ranks.notice import PID
from glomo_dist.pretrain.ranks.stopping import Stopping
from glomo_dist.pretrain.ranks.watchdog import Watchdog
from glomo_dist.pretrain.settings import idle
from glomo_dist.pretrain.settings.config import accumulation
from glomo_dist.pretrain.settings.deepspeed_settings import unknown_key
from glomo_dist.pretrain.settings.resolve import ResolvedRun
from glomo_dist.pretrain.steps.clock import Clock
from glomo_dist.runtime import files, json_files
from glomo_dist.runtime.errors import ConfigError, GlomoError, RankTooLarge, describe, lacks_memory
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.words import counted


def run(job: ResolvedRun, notice: Path | None = None) -> Path:
    """Join the group that the environment describes, train, leave. Returns the run folder; then the process must end.

    notice: file in which the watchdog leaves word for the program that started the ranks.
    """
    with launcher.needed():
        ranks = group.join(timeout_minutes=max(30.0, 2 * job.config.hang_timeout / 60))
    try:
        return run_in(job, ranks, notice, ends=True)
    except GlomoError:
        raise
    except Exception as e:
        if lacks_memory(e):
            raise RankTooLarge(_too_large(job, ranks, e)) from e
        raise
    finally:
        group.leave()


def run_in(job: ResolvedRun, ranks: Ranks, notice: Path | None = None, *, ends: bool = False) -> Path:
    """Train as one of `ranks`, alone in the run folder; every rank calls this. ends: the process ends after it."""
    with ExitStack() as stack:
        stopping = stack.enter_context(Stopping(ends=ends))
        if notice is not None:  # ready to be asked to stop
            files.write_bytes(notice.with_name(f"rank-{ranks.rank}{PID}"), str(os.getpid()).encode())
        here = (group.machine(), os.getpid())
        peers = [pid for machine, pid in ranks.gather(here) if machine == here[0] and pid != here[1]]
        watchdog = Watchdog(job.config.hang_timeout, ranks.rank, peers, notice)

        def begin() -> Claim | None:
            """None when the run is finished: there is nothing to train."""
            if notice is not None:
                notice.unlink(missing_ok=True)  # of an attempt that torchrun has restarted
            claim = stack.enter_context(locked(job.out))
            description = run_folder.describe(job, ranks.world)
            if run_folder.finished_already(job.out, description):
                return None
            if unknown := unknown_key(job.config, ranks.world):
                if not (job.out / run_folder.CONFIG).exists():
                    raise ConfigError(f"{unknown} Mend or remove it.")
                say(f"WARNING: {unknown}")  # an old run goes on
            for warning in idle.warnings(job.config, description["deepspeed"]):
                say(warning)
            run_folder.remove_leftovers(job.out)
            json_files.write_json(job.out / run_folder.CONFIG, description)
            return claim

        try:
            claim = ranks.from_first(begin)
            if claim is not None:
                train(job, ranks, claim, Clock(ranks.device, watchdog.beat), stopping)
        except GlomoError as e:
            if e.everywhere:
                _part(ranks, watchdog)
            raise  # otherwise the watchdog stays, for as long as this process does
        _part(ranks, watchdog)
    return job.out


def _too_large(job: ResolvedRun, ranks: Ranks, error: Exception) -> str:
    """The same command again would end in the same way."""
    micro, _ = accumulation(job.config, ranks.world)
    ways = [f"a micro_batch below {micro}"] if micro > 1 else []
    ways += [] if job.config.activation_checkpointing else ["activation_checkpointing"]
    less = f" The same steps take less with {' or '.join(ways)}, and the run goes on." if ways else ""
    return (
        f"rank {ranks.rank} of {job.out} ran out of memory with {counted(micro, 'sequence')} at a time "
        f"({describe(error)}).{less} A smaller global_batch or window is another run, in a folder of its own. `glomo "
        "plan` says what a rank needs."
    )


def _part(ranks: Ranks, watchdog: Watchdog) -> None:
    """From here on no rank waits for another, and one that ends is not a fault."""
    ranks.barrier()
    watchdog.close()
