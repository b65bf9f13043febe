"""A model as files: `model.safetensors` + `config.json` (+ `tokenizer.json`), written whole or not at all."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from glomo_dist.model.bundled import bundled
from glomo_dist.model.config import GlomoConfig
from glomo_dist.model.glomo import Glomo
from glomo_dist.runtime import files, json_files
from glomo_dist.runtime.config import from_dict, to_dict
from glomo_dist.runtime.errors import CheckpointError, DataError, describe, lacks_memory
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.formats import check_format

FORMAT, VERSION = "glomo-model", 1
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
_COPY = "Copy the folder again."
_EXPECTED = "Expected a folder written by `glomo pretrain` (RUN/model)."


def save_model(
    folder: str | Path,
    model: Glomo,
    tokenizer: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    advice: str = files.ADVICE,
) -> Path:
    """Write `folder` (which must not exist, or be empty). Raises GlomoError where it cannot be written.

    tokenizer: the tokenizer's JSON form, kept beside the weights so that the folder is enough to use the model.
    extra: further facts for config.json (what data, how many steps).
    advice: what that error says is to be done.
    """
    folder = Path(folder)
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    meta = {"format": FORMAT, "version": VERSION, "model": to_dict(model.config), **(extra or {})}
    with files.new_folder(folder, advice) as temporary:
        (temporary / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
        meta["weights_sha256"] = files.sha256_file(temporary / WEIGHTS)
        meta["fingerprint"] = _fingerprint(meta)
        if tokenizer is not None:
            meta["tokenizer"] = tokenizer.get("fingerprint")
            (temporary / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        (temporary / CONFIG).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return folder


def model_folder(path: str | Path) -> Path | None:
    """The model at `path`, which is its folder, a finished run's or `glomo:NAME` (bundled.py); None if there is none.

    Raises CheckpointError for a `glomo:NAME` that there is not, and for a folder that may not be looked into.
    """
    if (found := bundled(path)) is not None:
        return found
    with _reading(Path(path)):
        for folder in (Path(path), Path(path) / "model"):
            if all((folder / name).is_file() for name in (CONFIG, WEIGHTS)):
                return folder
    return None


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    return files.reading(path, CheckpointError, "Allow it, or copy the folder again.")


def read_meta(folder: str | Path) -> dict[str, Any]:
    """config.json of a model folder, checked; raises CheckpointError, also where there are no weights beside it."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder} holds no model: {CONFIG} is missing. {_EXPECTED}")
    try:
        content = json_files.read_json(path)
    except DataError as e:
        raise CheckpointError(f"{e} {_COPY}") from None
    meta = check_format(
        content, FORMAT, VERSION, path, "the description of a model", error=CheckpointError,
        instead=_EXPECTED, again="Export the model again with this version.",
    )  # fmt: skip
    for name in ("model", "fingerprint"):
        if name not in meta:
            raise CheckpointError(f"{path}: has no {name!r}. The file is damaged: copy the folder again.")
    if _fingerprint(meta) != meta["fingerprint"]:
        raise CheckpointError(
            f"{path}: its model and weights_sha256 are not those of its fingerprint. The file was changed or is "
            "damaged: copy the folder again."
        )
    if not (weights := path.with_name(WEIGHTS)).is_file():
        raise CheckpointError(f"{weights} is missing. Copy the whole folder, or export the model again.")
    return meta


def _fingerprint(meta: dict[str, Any]) -> str:
    return fingerprint([meta["model"], meta.get("weights_sha256")])


def config_of(meta: dict[str, Any], folder: str | Path) -> GlomoConfig:
    """The model's configuration in what `read_meta` has read of `folder`."""
    return from_dict(GlomoConfig, meta["model"], f"{Path(folder) / CONFIG}: model")


def read_config(folder: str | Path) -> GlomoConfig:
    """The configuration of the model in `folder`; raises as `read_meta` does."""
    return config_of(read_meta(folder), folder)


def load_model(folder: str | Path) -> tuple[Glomo, dict[str, Any]]:
    """The model in eval mode, in float32, and its config.json.

    folder: a model's, a finished run's, or `glomo:NAME` for a predictor that comes with the package.
    Raises CheckpointError for damaged or ill-fitting files.
    """
    folder = model_folder(folder) or Path(folder)
    meta = read_meta(folder)
    config = config_of(meta, folder)
    try:
        model = Glomo(config)
    except (MemoryError, RuntimeError) as e:
        if lacks_memory(e):
            raise CheckpointError(
                f"{folder / CONFIG}: there is no memory for a model of these sizes ({describe(e)}). If they are not "
                f"those of its weights, the file was changed. {_COPY}"
            ) from e
        raise
    weights = folder / WEIGHTS
    with _reading(weights):
        found = files.sha256_file(weights)
    if found != meta.get("weights_sha256"):
        raise CheckpointError(f"{weights} is damaged: its SHA-256 differs from the one in {CONFIG}. {_COPY}")
    try:
        state = load_file(weights)
    except SafetensorError as e:
        raise CheckpointError(f"{weights} is not a readable safetensors file: {e}. {_COPY}") from None
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        ours = tuple(wanted[name].shape) if name in wanted else "nothing"
        theirs = tuple(state[name].shape) if name in state else "nothing"
        if ours != theirs:
            raise CheckpointError(f"{weights}: {name} is {theirs}, the configuration asks for {ours}.")
        if wanted[name].is_floating_point():
            require_numbers(state[name], f"{weights}: {name}")
    model.load_state_dict(state)
    return model.eval(), meta


def require_numbers(tensor: Tensor, what: str) -> None:
    """CheckpointError, which calls the tensor `what`, unless it is dense, of a float dtype and finite."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise CheckpointError(f"{what} is of {tensor.dtype} ({tensor.layout}), expected dense float numbers.")
    if not (finite := torch.isfinite(tensor)).all():
        bad = tensor.numel() - int(finite.sum())
        raise CheckpointError(f"{what}: {bad} of {tensor.numel()} values are NaN or infinite.")


def random_model(source: str | Path | GlomoConfig, seed: int) -> Glomo:
    """A model with fresh parameters: the *random predictor* baseline, of the same configuration.

    source: a model folder or a configuration. The global random state is left as it was.
    """
    config = source if isinstance(source, GlomoConfig) else read_config(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Glomo(config).eval()
