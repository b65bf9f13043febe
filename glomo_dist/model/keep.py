"""Keep the model of a run in float16, in 16 MB at most: `python -m glomo_dist.model.keep RUN FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from glomo_dist.model.io import TOKENIZER, WEIGHTS, load_model, model_folder, require_numbers, save_model
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import CheckpointError, ConfigError, GlomoError
from glomo_dist.runtime.progress import say

MOST_BYTES = 16_000_000  # of the weights
FACTS = ("data", "step", "pretrain", "code")  # of config.json, beside those of the model


def keep(model: str | Path, out: str | Path) -> Path:
    """Write the model of a finished run (or a model's folder) to the folder `out`, in float16, and return that.

    Raises CheckpointError for what is no model with its own tokenizer, or has a number that float16 cannot hold,
    DataError for a tokenizer that is no JSON, ConfigError where the weights take over 16 MB.
    """
    trained, meta = load_model(model)
    half = trained.to(torch.float16)
    state = half.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            require_numbers(tensor, f"{model}: {name} in float16")
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if size > MOST_BYTES:
        raise ConfigError(
            f"{model}: the weights take {size} bytes in float16, more than {MOST_BYTES}. Take fewer words or a "
            "smaller width."
        )
    tokenizer = (model_folder(model) or Path(model)) / TOKENIZER
    if not tokenizer.is_file():
        raise CheckpointError(
            f"{tokenizer} is missing, and the model of no use without it. Copy the whole folder."
        )
    content = json_files.read_json(tokenizer)
    if not isinstance(content, dict) or meta.get("tokenizer") not in (None, content.get("fingerprint")):
        raise CheckpointError(
            f"{tokenizer} is not the tokenizer that the model was trained with. Put that back."
        )
    facts = {name: meta[name] for name in FACTS if name in meta}
    return save_model(out, half, content, facts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="RUN")
    parser.add_argument("out", metavar="FOLDER")
    given = parser.parse_args(argv)
    try:
        kept = keep(given.model, given.out)
    except GlomoError as e:
        say(f"keep: {e}")
        return e.exit_code
    say(f"{kept}: weights of {(kept / WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
