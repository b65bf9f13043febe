"""The options of the paper authors' command line, and the model that they describe (`GlomoConfig`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from glomo_dist.model.config import GlomoConfig, Sparsity
from glomo_dist.runtime.config import MOST, whole
from glomo_dist.runtime.errors import ConfigError, suggest

SPARSE_MODES: dict[int, Sparsity] = {0: "square", 1: "relu", 2: "bias", 3: "topk", 4: "threshold"}

# What the authors' command line offers, with its defaults. `K` is 8 and the scores are squared (`yann`, `cnn_sa`)
# in everything their code can run.
DEFAULTS: dict[str, Any] = {
    "d": 512, "ntokens": 100000, "K": 8, "nlayers": 1, "nlayers_key": 1, "nlayers_query": 1, "kernel_size": 3,
    "dec_layers": 2, "dec_len": 3, "sample_len": 20, "dropout": 0.0, "topk_rate": 1.0, "sparse_mode": 0,
    "use_value": 1, "use_gru": None, "no_gru": None, "cnn_sa": 1, "yann": 1,
}  # fmt: skip
# Options of a run rather than of a model; accepted and not used.
IGNORED = {"seq", "batch", "bsz", "bptt", "shift", "seed", "save", "lr", "clip", "eval_interval", "log_interval",
           "epochs", "momentum", "patience", "decay_rate", "dtype", "lens"}  # fmt: skip


def config_from_options(options: Mapping[str, Any]) -> GlomoConfig:
    """The `GlomoConfig` of a mapping with the authors' option names, bare or after `config/`.

    use_gru (or its opposite no_gru), use_value, sparse_mode 0-4, topk_rate, d, ntokens, K, nlayers, nlayers_key,
    nlayers_query, kernel_size, dec_layers, dec_len, dropout. Missing ones take the authors' defaults.
    Raises ConfigError for unknown names and values that the authors' code does not have.
    """
    given: dict[str, Any] = {}
    for key, value in options.items():
        name = str(key).removeprefix("config/")
        if name not in DEFAULTS and name not in IGNORED:
            raise ConfigError(f"ancestor option {key!r} is unknown.{suggest(name, DEFAULTS)}")
        given[name] = value
    o = {**DEFAULTS, **given}
    for name in ("use_gru", "no_gru", "use_value", "cnn_sa", "yann"):
        o[name] = (
            None if o[name] is None and DEFAULTS[name] is None else bool(whole_option(name, o[name], 0, 1))
        )
    for name in ("cnn_sa", "yann"):
        if not o[name]:
            raise ConfigError(f"ancestor option {name}=0 selects code that the authors left unfinished.")
    use_gru, no_gru = o["use_gru"], o["no_gru"]
    if use_gru is None:
        use_gru = not no_gru if no_gru is not None else True
    elif use_gru == no_gru:
        raise ConfigError(
            f"ancestor options use_gru={use_gru!r} and no_gru={no_gru!r} contradict each other."
        )
    return GlomoConfig(
        vocab_size=whole_option("ntokens", o["ntokens"]),
        width=whole_option("d", o["d"]),
        heads=whole_option("K", o["K"]),
        layers=whole_option("nlayers", o["nlayers"]),
        key_layers=whole_option("nlayers_key", o["nlayers_key"]),
        query_layers=whole_option("nlayers_query", o["nlayers_query"]),
        kernel_size=whole_option("kernel_size", o["kernel_size"]),
        sparsity=SPARSE_MODES[whole_option("sparse_mode", o["sparse_mode"], 0, max(SPARSE_MODES))],
        # a rate of 0 or less keeps one unit, as a very small one
        topk_rate=max(_number("topk_rate", o["topk_rate"]), sys.float_info.min),
        norm="batch",
        composition="gru" if use_gru else "residual",
        value="linear" if o["use_value"] else "features",
        decoder_layers=whole_option("dec_layers", o["dec_layers"]),
        decoder_steps=whole_option("dec_len", o["dec_len"]),
        dropout=_number("dropout", o["dropout"]),
        scale_grad_by_freq=True,
    )


def _number(name: str, value: Any) -> float:
    """Of a number, or of its text as a command line has it."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"ancestor option {name} must be a number, got {value!r:.80}.") from None


def whole_option(name: str, value: Any, least: int = 0, most: int = MOST) -> int:
    """The whole number, or its text, that the authors' option `name` has; ConfigError if it is another value."""
    number = _number(name, value)
    return whole(f"ancestor option {name}", int(number) if number.is_integer() else value, least, most)


def ancestor_text(vocab_size: int = 100_001) -> GlomoConfig:
    """The model of the paper's text experiments: threshold sparsity, GRU composition, 3 layers, 8 heads, d 512.

    vocab_size: the authors keep 100,000 words and add one for unknown words.
    """
    return config_from_options(
        {"ntokens": vocab_size, "nlayers": 3, "nlayers_key": 4, "nlayers_query": 4, "sparse_mode": 4}
    )
