"""What a run needs to begin: its settings, with what the shards say filled in and checked against them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from glomo_dist.data import Address, PixelTokenizer, Place, ShardIndex, Tokenizer, exists, place
from glomo_dist.data.shards.index import INDEX_NAME
from glomo_dist.model import GlomoConfig
from glomo_dist.pretrain.settings.config import PretrainConfig
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.paths import output


@dataclass(frozen=True)
class Inputs:
    """Settings and shards that fit each other. valid_index: where the settings ask for validation."""

    config: PretrainConfig
    data: Place
    index: ShardIndex
    valid_index: ShardIndex | None
    tokenizer: Tokenizer


@dataclass(frozen=True)
class ResolvedRun(Inputs):
    """A run with everything resolved: what the ranks need to begin."""

    out: Path


def resolve(
    config: PretrainConfig, data: str | Place, out: str | Path, valid: str | Place | None = None
) -> ResolvedRun:
    """`resolve_inputs` of a run into the folder `out`, which is not looked at."""
    out, retry = output(out), config.reading.retry_seconds
    shards = [place(folder) for folder in (data, valid) if folder is not None]
    if retry >= config.hang_timeout and any(isinstance(folder, Address) for folder in shards):
        raise ConfigError(
            f"reading.retry_seconds {retry:g} must be less than hang_timeout {config.hang_timeout:g}: a rank that "
            "waits for a shard would be ended as one that hangs. Lower it, or raise hang_timeout."
        )
    return ResolvedRun(**vars(resolve_inputs(config, data, valid)), out=out)


def resolve_inputs(
    config: PretrainConfig, data: str | Place, valid: str | Place | None = None, *, validates: bool = True
) -> Inputs:
    """Read the shards' index and tokenizer, fill in what the configuration left to them, check the rest.

    validates: False leaves the validation shards out, which may not be there yet.
    Raises ConfigError where settings and shards do not fit, ShardError for shards that cannot be used.
    """
    data = place(data)
    if valid is not None and not config.valid_every:
        raise ConfigError(
            f"valid {place(valid)} needs valid_every, which is 0. Set valid_every (steps between validations), "
            "or leave valid out."
        )
    if not exists(data / INDEX_NAME) and exists(data / "train" / INDEX_NAME):
        # prepared with a validation share: one folder holds both parts
        valid = data / "valid" if valid is None and config.valid_every else valid
        data = data / "train"
    index = ShardIndex.read(data, max_bad_shards=config.reading.max_bad_shards)
    tokenizer = index.load_tokenizer()
    asked = config.model.vocab_size
    if asked not in (0, tokenizer.vocab_size):
        raise ConfigError(
            f"model.vocab_size {asked} does not fit {data / 'tokenizer.json'}, which has "
            f"{tokenizer.vocab_size} units. Set model.vocab_size 0 to take it from the data."
        )
    image = _image(config.model, tokenizer, data)
    valid_index = None
    if config.valid_every and validates:
        if valid is None:
            raise ConfigError(
                f"valid_every {config.valid_every} needs validation shards: prepare with valid_share, name "
                "their folder (valid), or set valid_every 0."
            )
        valid_index = ShardIndex.read(valid)
        if valid_index.tokenizer != index.tokenizer:
            raise ConfigError(
                f"the validation shards {valid} were made with another tokenizer than {data}. Prepare both "
                "with the same."
            )
        valid_index.check_tokenizer(tokenizer)
    model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size, image=image)
    return Inputs(dataclasses.replace(config, model=model), data, index, valid_index, tokenizer)


def _image(model: GlomoConfig, tokenizer: Tokenizer, data: Place) -> tuple[int, int] | None:
    """Height and width of the images in the shards, None for text; ConfigError where the configuration has others."""
    if not isinstance(tokenizer, PixelTokenizer):
        if model.image is not None or model.distance == "rotary_2d":
            given = f"image {model.image}" if model.image is not None else f"distance {model.distance}"
            raise ConfigError(f"model.{given} is for pixels, {data} holds {tokenizer.kind}. Remove it.")
        return None
    if model.image is not None and tuple(model.image) != tokenizer.shape:
        raise ConfigError(
            f"model.image {tuple(model.image)} does not fit the images in {data}, which are {tokenizer.shape} "
            "(height, width)."
        )
    return tokenizer.shape
