"""Checkpoints that are whole or not there, verified before use; the newest good one wins.

    RUN/checkpoints/step-000100/
        state/rank-00000.safetensors   what each rank held (state.py)
        model/                         the exported model (safetensors)
        manifest.json                  step, loop state, size and SHA-256 of every other file, and their fingerprint
    RUN/checkpoints/latest   the name of the newest, written last

A folder gets its final name only when all of it is on disk. `saving.py` does this while training goes on.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glomo_dist.pretrain.output import run_folder, state
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.runtime import files, json_files
from glomo_dist.runtime.errors import CheckpointError, DataError, GlomoError, OtherVersion
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.formats import check_format
from glomo_dist.runtime.progress import say

FORMAT, VERSION = "glomo-checkpoint", 2
STATE, MODEL, MANIFEST = "state", "model", "manifest.json"
SEAL = "fingerprint"
_NAME = re.compile(r"step-(\d{6,})")


def name_of(step: int) -> str:
    """Of the folder of a checkpoint."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int | None:
    """The inverse of `name_of`; None for what is no checkpoint's folder."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match and folder.is_dir() else None


def existing(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, newest first, good or not. Raises GlomoError where it cannot be looked into."""
    with files.reading(folder, GlomoError, "Run the same command again when it can."):
        found = [p for p in folder.iterdir() if step_of(p) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda p: step_of(p) or 0, reverse=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint; killed half way, what is left has no checkpoint's name."""
    going = folder.with_name(f".{folder.name}.old.tmp")
    folder.rename(going)
    shutil.rmtree(going)


def write_manifest(
    folder: Path, step: int, loop: dict[str, Any], world: int, known: dict[str, dict[str, Any]]
) -> None:
    """known: size and SHA-256 of the files that were hashed while they were written; the rest is read again."""
    content = dict(known)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if name not in content:
            content[name] = {"bytes": file.stat().st_size, "sha256": files.sha256_file(file)}
    manifest = {
        "format": FORMAT, "version": VERSION, "step": step, "ranks": world, "state": loop, "files": content,
    }  # fmt: skip
    json_files.write_json(folder / MANIFEST, sealed(manifest), run_folder.GO_ON)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """With its own fingerprint: no other file vouches for the loop state."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return {**content, SEAL: fingerprint(content)}


@contextlib.contextmanager
def _reading(folder: Path, name: str) -> Iterator[None]:
    """CheckpointError if the block finds no file `name` in `folder`. Any other error of the disk or the network may
    be over in a minute: it is no CheckpointError, so nothing is set aside."""
    again = (
        f"Run the same command again when it can; without {folder.name}, which you may move elsewhere, the run goes "
        "on from the checkpoint before it."
    )
    with files.reading(folder / name, GlomoError, again):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise CheckpointError(f"checkpoint {folder} is damaged: {name} is missing.") from None


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a good checkpoint; CheckpointError that says what is wrong with a bad one, GlomoError for one
    that cannot be read now."""
    path = folder / MANIFEST
    with _reading(folder, MANIFEST):
        content = path.read_bytes()
    try:
        manifest = json_files.parse_json(content, str(path))
    except DataError as e:
        raise CheckpointError(f"checkpoint {folder} is damaged: {e}") from None
    check_format(
        manifest, FORMAT, VERSION, f"checkpoint {path}", "the manifest of a checkpoint", error=CheckpointError,
        other=OtherVersion, instead="It is damaged.", again="Continue the run with the version that wrote it.",
    )  # fmt: skip
    if SEAL not in manifest:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {path.name} has no {SEAL} that vouches for it."
        )
    try:
        wanted = {name: (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        complete = (
            manifest["step"] == manifest["state"]["step"] == step_of(folder)
            and manifest == sealed(manifest)
            and len(_state_files(folder, manifest)) == manifest["ranks"]
            and not any(".." in Path(name).parts or Path(name).is_absolute() for name in wanted)
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        complete = False
    if not complete:
        raise CheckpointError(f"checkpoint {folder} is damaged: {path.name} is not what was written.")
    for name, (size, sha256) in wanted.items():
        file = folder / name
        with _reading(folder, name):
            same = file.stat().st_size == size and files.sha256_file(file) == sha256
        if not same:
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} is not what was written (SHA-256)."
            )
    return manifest


def find_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Newest good checkpoint and its manifest (None: start from nothing); rank 0 only.

    Damaged ones are set aside under another name, loudly. If there are checkpoints and none is good the run
    must not silently start again: CheckpointError. Leftovers of a save that was interrupted are deleted.
    """
    files.remove_leftovers(folder)
    for candidate in existing(folder):
        try:
            return candidate, verify(candidate)
        except OtherVersion:
            raise
        except CheckpointError as e:
            aside = candidate.with_name(f"damaged-{candidate.name}")
            with files.writing(candidate, "It is damaged and cannot be set aside. Move it elsewhere."):
                if aside.is_dir():
                    shutil.rmtree(aside)
                aside.unlink(missing_ok=True)
                candidate.rename(aside)
            say(f"WARNING: {e} It was renamed to {aside.name}; going back to the checkpoint before it.")
    if any(folder.glob("damaged-step-*")):
        raise CheckpointError(
            f"no checkpoint in {folder} can be read: all were damaged and renamed damaged-step-*. Restore "
            "one from a copy under its old name, or start anew in another folder."
        )
    return None


def _state_files(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """Those that the manifest vouches for; others in the folder are not looked at."""
    return [folder / name for name in sorted(manifest["files"]) if name.startswith(f"{STATE}/rank-")]


def load(engine: Any, folder: Path, manifest: dict[str, Any], ranks: Ranks) -> None:
    """Put weights and optimizer of `folder` (verified) into a fresh engine, on any number of ranks."""
    state.restore(engine, _state_files(folder, manifest), ranks)
