"""Writing checkpoints while training goes on.

`save` copies this rank's share of the state into memory and returns; a thread writes it, hashes it and flushes it to
disk. On rank 0 the thread then waits for the files of the others, adds the exported model and the manifest, and
gives the folder its name. One checkpoint is written at a time: the next `save` waits for the one before it, and
`wait` for the last. What goes wrong in a thread is raised on every rank, at the next `save`, `wait` or step.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from glomo_dist.model import Glomo, GlomoConfig, save_model
from glomo_dist.pretrain.output import checkpoint, run_folder
from glomo_dist.pretrain.output.state import model_state, snapshot
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.runtime import files, json_files
from glomo_dist.runtime.errors import DataError, GlomoError

Export = Callable[[Path, list[Path], int], None]


def exporter(config: GlomoConfig, tokenizer: dict[str, Any], extra: dict[str, Any]) -> Export:
    """Writes the model of a checkpoint from its pieces; runs beside the training, so it draws no random numbers.

    tokenizer, extra: see `save_model`; the step is added.
    """
    with torch.device("meta"):
        model = Glomo(config)
    parameters = {name for name, _ in model.named_parameters()}

    def export(folder: Path, pieces: list[Path], step: int) -> None:
        model.load_state_dict(model_state(pieces, model.state_dict(), parameters), assign=True)
        save_model(folder, model, tokenizer, {**extra, "step": step}, run_folder.GO_ON)
        model.to("meta")  # gives the memory back

    return export


class Saver:
    """Checkpoints of one run; every rank has one and calls it at the same steps.

    keep: checkpoints that stay.  export(folder, state_files, step): writes the model there, in rank 0's thread.
    allowed(): raises GlomoError where this run may no longer write, e.g. since another has taken the folder.
    beat(): called while waiting, as long as there is progress.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, keep: int, export: Export, allowed: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:  # fmt: skip
        self._folder, self._ranks, self._keep = folder, ranks, keep
        self._export, self._allowed, self._beat = export, allowed, beat
        self._thread: threading.Thread | None = None
        self._temporary: Path | None = None
        self._stop = threading.Event()
        self._progress = 0
        self.error: GlomoError | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, engine: Any, step: int, loop: dict[str, Any]) -> None:
        """Begin to write folder/step-NNNNNN. loop: what the loop needs to go on (JSON-able)."""
        self.wait()
        self._temporary = self._ranks.from_first(lambda: self._make_temporary(step))
        tensors = snapshot(engine)
        self._thread = threading.Thread(
            target=self._write, args=(tensors, step, loop), name="glomo-checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint that is being written is there. Raises, on every rank, what went wrong."""
        seen = -1.0
        while self._temporary is not None:
            if self._thread is not None:
                self._thread.join(0.05)
            running, failed, progress = self._ranks.sum([self.busy, self.error is not None, self._progress])
            if failed:
                error = self.error  # the thread that is told to give up adds an error of its own
                self._give_up()
                self._ranks.agree_on(error)
            if not running:
                self._temporary = None
            if progress != seen:
                seen = progress
                self._beat()

    def _give_up(self) -> None:
        """End the thread and remove what it has written."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._ranks.barrier()
        if self._ranks.first and self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._thread = self._temporary = None

    def _make_temporary(self, step: int) -> Path:
        path = self._folder / f".{checkpoint.name_of(step)}.{time.time_ns():x}.tmp"
        self._allowed()
        with files.writing(path, run_folder.GO_ON):
            self._folder.mkdir(exist_ok=True)  # without the run's, which may have been moved or deleted
            (path / checkpoint.STATE).mkdir(parents=True)
        return path

    # in the thread

    def _write(self, tensors: dict[str, Tensor], step: int, loop: dict[str, Any]) -> None:
        assert self._temporary is not None
        name = f"rank-{self._ranks.rank:05d}"
        try:
            content = safetensors.torch.save(tensors)
            tensors.clear()
            note = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            self._progress += 1
            files.write_bytes(
                self._temporary / checkpoint.STATE / f"{name}.safetensors", content, run_folder.GO_ON
            )
            del content
            self._progress += 1
            json_files.write_json(self._temporary / checkpoint.STATE / f"{name}.json", note, run_folder.GO_ON)
            if self._ranks.first:
                self._complete(step, loop)
        except GlomoError as e:
            self.error = e
        except OSError as e:
            self.error = files.cannot_write(self._folder / checkpoint.name_of(step), e, run_folder.GO_ON)
        except BaseException as e:  # a bug; the run must not go on without checkpoints
            self.error = GlomoError(f"writing checkpoint {checkpoint.name_of(step)}: {type(e).__name__}: {e}")

    def _complete(self, step: int, loop: dict[str, Any]) -> None:
        """Rank 0: when all ranks' files are there, the rest of the checkpoint and its name."""
        temporary = self._temporary
        assert temporary is not None
        known = {}
        for rank in range(self._ranks.world):
            note = temporary / checkpoint.STATE / f"rank-{rank:05d}.json"
            known[f"{checkpoint.STATE}/{note.stem}.safetensors"] = self._read_note(note)
            note.unlink()
            self._progress += 1
        self._export(temporary / checkpoint.MODEL, [temporary / name for name in sorted(known)], step)
        self._progress += 1
        checkpoint.write_manifest(temporary, step, loop, self._ranks.world, known)
        files.sync_tree(temporary)
        self._allowed()
        final = self._folder / checkpoint.name_of(step)
        temporary.rename(final)
        files.sync(self._folder)
        files.write_bytes(self._folder / "latest", f"{final.name}\n".encode(), run_folder.GO_ON)
        for old in checkpoint.existing(self._folder)[self._keep :]:
            checkpoint.remove(old)

    def _read_note(self, path: Path) -> dict[str, Any]:
        while not self._stop.is_set():
            try:
                note: dict[str, Any] = json_files.read_json(path)
                return note
            except DataError:  # not there yet
                self._stop.wait(0.01)
        raise GlomoError(f"{path.parent.parent.name}: given up, since another rank could not write its part.")
