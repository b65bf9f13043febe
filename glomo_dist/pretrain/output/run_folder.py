"""What a run folder is, and what it must agree with before a run goes on in it; who may write to it: claim.py.

RUN/config.json   resolved configuration, fingerprints of the shards and tokenizer, number of ranks
RUN/quarantine.json  shards that are set aside, see steps/feed.py
RUN/log.jsonl     one row per logged step
RUN/checkpoints/  see checkpoint.py
RUN/tensorboard/
RUN/model/        the trained model; there only when the run is finished
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glomo_dist.pretrain.settings.config import FREE_TO_CHANGE, accumulation
from glomo_dist.pretrain.settings.deepspeed_settings import extra_settings
from glomo_dist.pretrain.settings.idle import RULES
from glomo_dist.pretrain.settings.resolve import ResolvedRun
from glomo_dist.runtime import files, json_files
from glomo_dist.runtime.config import to_dict
from glomo_dist.runtime.errors import CheckpointError, DataError, GlomoError, OtherVersion
from glomo_dist.runtime.fingerprint import code_version, command_line
from glomo_dist.runtime.formats import check_format
from glomo_dist.runtime.locks import Lock, take
from glomo_dist.runtime.progress import say

FORMAT, VERSION = "glomo-run", 1
CONFIG, MODEL, LAUNCH = "config.json", "model", ".launch-"
LOG, CHECKPOINTS, QUARANTINE = "log.jsonl", "checkpoints", "quarantine.json"
WANDB, MLFLOW, TENSORBOARD = "wandb.json", "mlflow.json", "tensorboard"
# under a temporary name before, then at once
WRITTEN = (CONFIG, MODEL, QUARANTINE, LOG, MLFLOW, WANDB)
GO_ON = "The checkpoints are untouched. Free space or mend the disk, then run the same command again."
_PUT_BACK = f"Put {CONFIG} back, or choose another output folder."


def describe(job: ResolvedRun, ranks: int) -> dict[str, Any]:
    """The content of config.json. Raises ConfigError where the batch does not split over the ranks."""
    accumulation(job.config, ranks)
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": to_dict(job.config),
        "deepspeed": extra_settings(job.config),
        "data": {
            "folder": str(job.data.resolve()),
            "fingerprint": job.index.fingerprint,
            "tokenizer": job.tokenizer.fingerprint,
        },
        "valid": None
        if job.valid_index is None
        else {"folder": str(job.valid_index.folder.resolve()), "fingerprint": job.valid_index.fingerprint},
        "ranks": ranks,
        "code": code_version(),
        "command": command_line(),
    }


def check(out: Path, description: dict[str, Any]) -> bool:
    """Whether `out` holds this very run already; False when it is new or empty. Writes nothing.

    Raises CheckpointError when it holds another run, GlomoError when it holds something else.
    """
    with files.writing(out, "Choose another output folder."):  # even looking may be forbidden
        if not (out / CONFIG).exists():
            # all that a start can leave that was killed before there was a CONFIG
            begun = (files.LOCK, LAUNCH, f".{CONFIG}.")
            checkpoints = out / CHECKPOINTS
            kept = checkpoints.is_dir() and bool(files.entries(checkpoints))
            if out.is_dir() and all(
                p.name.startswith(begun) or (p == checkpoints and not kept) for p in files.entries(out)
            ):
                return False
            if kept:
                raise GlomoError(f"{out} holds checkpoints, but not the {CONFIG} of their run. {_PUT_BACK}")
            files.require_absent_or_empty(out)
            return False
    try:
        before = json_files.read_json(out / CONFIG)
    except DataError as e:
        raise GlomoError(f"{e} The checkpoints are untouched. {_PUT_BACK}") from None
    check_format(
        before, FORMAT, VERSION, out / CONFIG, "the description of a pretraining run", error=GlomoError,
        other=OtherVersion, instead="Choose another output folder.",
        again="Continue the run with the version that began it, or choose another output folder.",
    )  # fmt: skip
    old, new = comparable(before), comparable(description)
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if not differing:
        return True
    listed = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing[:5])
    more = f" (and {len(differing) - 5} more)" if len(differing) > 5 else ""
    what = ""
    if "data.tokenizer" in differing or "config.model.vocab_size" in differing:
        what = " The vocabulary of these shards does not fit the checkpoint: use those it was trained on."
    raise CheckpointError(
        f"{out} holds a run that differs: {listed}{more}.{what} To continue it give the same settings; for a "
        "new run choose another output folder."
    )


def comparable(description: dict[str, Any]) -> dict[str, Any]:
    """Flat form of what must agree for a run to go on: paths, settings without effect and the code's version may
    change."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", {key: description.get(key) for key in ("config", "deepspeed", "data", "valid")})
    ignored = {
        "data.folder",
        "valid.folder",
        "config.deepspeed",
        *(f"config.{name}" for name in FREE_TO_CHANGE),
        *(f"config.{r.name}" for r in RULES if not r.applies(lambda name: flat.get(f"config.{name}"))),
    }
    return {key: value for key, value in flat.items() if key not in ignored}


def finished(out: Path) -> bool:
    """Whether the model is there, which is published last."""
    return (out / MODEL / CONFIG).exists()


def finished_already(out: Path, description: dict[str, Any]) -> bool:
    """Whether `out` holds this very run and it is finished, which is then said. Raises as `check` does."""
    if not (check(out, description) and finished(out)):
        return False
    say(f"{out} is finished already; the model is in {out / MODEL}")
    return True


def remove_leftovers(out: Path) -> None:
    """Delete what a run that was killed left under temporary names; those of other programs stay."""
    for name in WRITTEN:
        files.remove_leftovers(out, f"{name}.*")


def remove_launches(out: Path) -> None:
    """Delete the folders of launches that were killed; that of one in progress is locked."""
    for old in out.glob(f"{LAUNCH}*"):
        with contextlib.suppress(OSError), open(old / files.LOCK, "a") as lock:
            if take(lock) is Lock.HELD:
                shutil.rmtree(old)


@contextlib.contextmanager
def launch_folder(out: Path) -> Iterator[Path]:
    """A folder in the run folder for what one launch keeps in files, for this user alone; it goes with the launch."""
    path = out / f"{LAUNCH}{uuid.uuid4().hex[:8]}"
    with files.writing(path, "Free space on the disk."):
        path.mkdir(0o700, parents=True)  # the address of the data may hold what opens it
        lock = open(path / files.LOCK, "a")  # noqa: SIM115 (closed below)
    with lock:
        with contextlib.suppress(OSError):  # without it, another launch leaves the folder as well
            take(lock)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
