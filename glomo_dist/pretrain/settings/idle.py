"""Settings that change nothing in the run that they are given to: an ablation by them would be its base, to the bit.

They are of the run, not of GlomoConfig: a model that was saved, or is made of the authors' options, may have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glomo_dist.runtime.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """The setting `name` has an effect where one of the settings `of` is `needed`, or a count of at least that.

    refused: what is needed is a choice of its own. Else it is the size of a part, which a sweep may bring to the end
    of its range, and the run is warned of.
    """

    name: str
    of: tuple[str, ...]
    needed: str | int
    refused: bool = True

    def applies(self, setting: Callable[[str], Any]) -> bool:
        """Of a run by its settings' names; one that is not known is none."""
        least = self.needed
        return any(
            isinstance(value, int) and value >= least if isinstance(least, int) else value == least
            for value in map(setting, self.of)
        )


RULES = (
    Rule("model.value", ("model.composition",), "residual"),
    Rule("model.topk_rate", ("model.sparsity",), "topk"),
    Rule("model.kernel_size", ("model.key_layers", "model.query_layers"), 1, refused=False),
    Rule("model.norm", ("model.key_layers", "model.query_layers"), 1, refused=False),
    Rule("model.coupled", ("model.layers",), 2, refused=False),
    Rule("momentum", ("optimizer",), "sgd"),
    Rule("betas", ("optimizer",), "adamw"),
    Rule("final_lr_share", ("schedule",), "cosine"),
    Rule("plateau_patience", ("schedule",), "plateau"),
    Rule("plateau_divisor", ("schedule",), "plateau"),
    Rule("valid_batches", ("valid_every",), 1),
)


def refuse_idle(config: Any) -> None:
    """ConfigError for the first setting of a PretrainConfig that is not its default, has no effect and is refused."""
    for rule, what, instead in _idle(config):
        if rule.refused:
            raise ConfigError(f"{what}, which it would not change. {instead}")


def warnings(config: Any, deepspeed: Mapping[str, Any] | None = None) -> list[str]:
    """A line for each other such setting. deepspeed: content of the file of that name, where there is one."""
    found = [what for rule, what, _ in _idle(config) if not rule.refused]
    if deepspeed and deepspeed.get("zero_optimization") and not config.zero_stage:
        found.append(f"zero_optimization in {config.deepspeed} is for zero_stage 1 or more, got 0")
    return [f"WARNING: {what}, and changes nothing in this run." for what in found]


def _idle(config: Any) -> list[tuple[Rule, str, str]]:
    """The rules of settings that are not their default and have no effect; what is wrong, and what to do."""
    found = []
    for rule in RULES:
        value, default = _setting(config, rule.name)
        if value != default and not rule.applies(lambda name: _setting(config, name)[0]):
            least = f"{rule.needed} or more" if isinstance(rule.needed, int) else rule.needed
            of = " or ".join(name.removeprefix("model.") for name in rule.of)
            there = _setting(config, rule.of[0])[0]
            what = f"{rule.name} {value} is for {of} {least}, got {there!r}"
            found.append((rule, what, f"Set {rule.of[0]} {least}, or {rule.name} {default}."))
    return found


def _setting(config: Any, name: str) -> tuple[Any, Any]:
    """The value of a setting, and its default."""
    part, _, last = name.rpartition(".")
    owner = getattr(config, part) if part else config
    return getattr(owner, last), getattr(type(owner), last)
