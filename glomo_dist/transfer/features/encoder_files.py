"""The files of an encoder of Hugging Face `transformers`: where they are, and the encoder that is in them.

Any encoder with a fast tokenizer, from a folder or by its name on the hub. Weights are read from safetensors only,
and code that comes with a model is never run.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from glomo_dist.runtime import files, packages
from glomo_dist.runtime.errors import ConfigError, describe, lacks_memory
from glomo_dist.runtime.fingerprint import fingerprint
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.features.spec import ENCODER_SPEC, FeatureSpec

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # of an encoder: weights, configuration, tokenizer


def locate(source: str) -> Path:
    """The folder of an encoder: `source` itself, or its copy in the cache of the hub, loaded if it is not there.

    Raises ConfigError if there is none, or none in safetensors.
    """
    folder = Path(os.path.expanduser(source))
    if not os.path.isdir(folder):
        _require_transformers()
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=list(FILES)))
        except Exception as e:  # the hub's own errors, and those of HTTP: a broken connection, a proxy
            raise ConfigError(
                f"features hf:{source}: no such folder, and not on the hub or not reachable "
                f"({describe(e):.300}). Give the folder of an encoder saved by transformers; expected "
                f"{ENCODER_SPEC}."
            ) from e
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"features hf:{source}: expected config.json and weights as .safetensors in {folder}. Pickled weights "
            "can run code and are not read: load the model once and save it with save_pretrained."
        )
    return folder


def encoder_fingerprint(spec: FeatureSpec) -> str:
    """Of the encoder's files, the layer and the pooling."""
    folder = locate(spec.source)
    names = sorted(path.name for pattern in FILES for path in folder.glob(pattern))
    return fingerprint([[[n, files.sha256_file(folder / n)] for n in names], spec.layer, spec.pool])


def load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and encoder. Raises ConfigError unless both are whole and fit each other."""
    tokenizer, _ = tokenizer_and_config(folder)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with _loading(folder):
        with torch.random.fork_rng(devices=[]):  # a job's numbers do not depend on what was in the cache
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        # T5EncoderModel is saved as no encoder-decoder, and loaded as one: its decoder is drawn at random.
        decodes = "decoder_input_ids" in inspect.signature(model.forward).parameters
        encoder = (model.get_encoder() if decodes or model.config.is_encoder_decoder else model).eval()
    # What transformers does not find it draws at random. Only the states are taken: no decoder, no pooled vector.
    taken = {id(weight) for weight in encoder.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    missing = sorted(
        name
        for name, w in named
        if name in report["missing_keys"] and id(w) in taken and "pooler" not in name
    )
    if missing:
        raise ConfigError(
            f"{folder}: {counted(len(missing), 'weight is', 'weights are')} not in its .safetensors files, "
            f"first {', '.join(missing[:3])}. Copy the encoder again, or save it with save_pretrained."
        )
    return tokenizer, encoder


def tokenizer_and_config(folder: Path) -> tuple[Any, Any]:
    """Raises ConfigError unless both can be read and the tokenizer is a fast one, with words."""
    _require_transformers()
    import transformers

    with _loading(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, add_prefix_space=True, trust_remote_code=False
        )
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ConfigError(f"{folder} has no fast tokenizer (tokenizer.json), which tells words apart.")
    # Where there is no file of one, transformers makes one without words, with at most the sign for a space.
    if len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)) < 2:
        raise ConfigError(
            f"{folder} has no files of a tokenizer, or of one without words. Save the encoder's own there."
        )
    return tokenizer, config


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # each kind of damage has its own: in safetensors, in JSON, in tokenizers
        if lacks_memory(e):
            raise
        raise ConfigError(f"{folder} cannot be loaded by transformers: {describe(e):.300}") from e


def _require_transformers() -> None:
    packages.require("transformers", "features hf:…", "'glomo-dist[hf]'")
