"""Checkpoints that are whole or not there, verified before use; the newest good one wins.

    RUN/checkpoints/step-000100/
        state/          DeepSpeed's files, one or two per rank
        model/          the exported model (safetensors)
        manifest.json   step, loop state, and size and SHA-256 of every other file
    RUN/checkpoints/latest   the name of the newest, written last

DeepSpeed saves in place and its files are pickles: the folder gets its final name only when all of it is on
disk, and only folders that this run wrote are read back.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glomo_dist.pretrain.ranks import Ranks
from glomo_dist.runtime import files
from glomo_dist.runtime.errors import CheckpointError, DataError
from glomo_dist.runtime.progress import say

FORMAT, VERSION = "glomo-checkpoint", 1
_NAME = re.compile(r"step-(\d{6,})")


def step_of(folder: Path) -> int | None:
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match and folder.is_dir() else None


def existing(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, newest first, good or not."""
    found = [p for p in folder.iterdir() if step_of(p) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda p: step_of(p) or 0, reverse=True)


def save(
    engine: Any,
    folder: Path,
    step: int,
    state: dict[str, Any],
    ranks: Ranks,
    export: Callable[[Path], None],
    keep: int,
) -> Path:
    """Write folder/step-NNNNNN, then delete all but the `keep` newest; every rank calls this.

    state: what the loop needs to go on (JSON-able).  export(path): writes the model on rank 0.
    """
    final = folder / f"step-{step:06d}"
    with contextlib.ExitStack() as stack:
        # Rank 0 chooses the temporary name, the others learn it: a name per rank would scatter the files.
        temporary = ranks.from_first(lambda: stack.enter_context(files.new_folder(final)))
        engine.save_checkpoint(str(temporary), tag="state", client_state={}, save_latest=False)
        export(temporary / "model")
        if ranks.first:
            for script in temporary.glob("zero_to_*.py"):  # DeepSpeed's exporters; model/ is our export
                script.unlink()
        ranks.barrier()
        if ranks.first:
            _write_manifest(temporary, step, state, ranks.world)
    if ranks.first:
        files.write_bytes(folder / "latest", f"{final.name}\n".encode())
        for old in existing(folder)[keep:]:
            shutil.rmtree(old)
    ranks.barrier()
    return final


def _write_manifest(folder: Path, step: int, state: dict[str, Any], world: int) -> None:
    content = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        content[file.relative_to(folder).as_posix()] = {
            "bytes": file.stat().st_size,
            "sha256": files.sha256_file(file),
        }
    manifest = {
        "format": FORMAT, "version": VERSION, "step": step, "ranks": world, "state": state, "files": content,
    }  # fmt: skip
    files.write_json(folder / "manifest.json", manifest)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a good checkpoint; CheckpointError that says what is wrong with a bad one."""
    path = folder / "manifest.json"
    try:
        manifest = files.read_json(path)
    except DataError as e:
        raise CheckpointError(f"checkpoint {folder} is damaged: {e}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {folder} is damaged: {path.name} is not a {FORMAT} manifest.")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint {folder} has format version {manifest.get('version')}, this program reads "
            f"{VERSION}. Continue the run with the version that wrote it."
        )
    for name, wanted in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is missing.")
        if file.stat().st_size != wanted["bytes"] or files.sha256_file(file) != wanted["sha256"]:
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} is not what was written (SHA-256)."
            )
    return manifest


def find_newest(folder: Path, world: int) -> tuple[Path, dict[str, Any]] | None:
    """Newest good checkpoint and its manifest (None: start from nothing); rank 0 only.

    Damaged ones are set aside under another name, loudly. If there are checkpoints and none is good the run
    must not silently start again: CheckpointError. Leftovers of a save that was interrupted are deleted.
    """
    if folder.is_dir():
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
    candidates = existing(folder)
    for candidate in candidates:
        try:
            manifest = verify(candidate)
        except CheckpointError as e:
            if "format version" in str(e):
                raise
            aside = candidate.with_name(f"damaged-{candidate.name}")
            if aside.exists():
                shutil.rmtree(aside)
            candidate.rename(aside)
            say(f"WARNING: {e} It was renamed to {aside.name}; going back to the checkpoint before it.")
            continue
        if manifest["ranks"] != world:
            raise CheckpointError(
                f"checkpoint {candidate} was written by {manifest['ranks']} ranks, this run has {world}. "
                f"Continue with {manifest['ranks']} ranks."
            )
        return candidate, manifest
    if any(folder.glob("damaged-step-*")):
        raise CheckpointError(
            f"no checkpoint in {folder} can be read: all were damaged and renamed damaged-step-*. Restore "
            "one from a copy under its old name, or start anew in another folder."
        )
    return None


def load(engine: Any, folder: Path) -> None:
    """Put weights, optimizer and counters of `folder` (verified) into the engine; every rank calls this."""
    path, _ = engine.load_checkpoint(str(folder), tag="state")
    if path is None:
        raise CheckpointError(
            f"checkpoint {folder}: DeepSpeed found nothing to load in {folder / 'state'}. Was it written "
            "with another ZeRO stage?"
        )
