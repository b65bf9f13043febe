"""Complete pretraining runs by name. A recipe starts from another and changes a few lines.

`glomo pretrain --recipe NAME` takes one, and flags change single settings; vocab_size is taken from the shards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from glomo_dist.model import GlomoConfig
from glomo_dist.model import ancestor_options as ancestor
from glomo_dist.pretrain import PretrainConfig
from glomo_dist.runtime.errors import ConfigError, suggest


def base() -> PretrainConfig:
    """The defaults of every setting: a small model for text."""
    return PretrainConfig()


def tiny() -> PretrainConfig:
    """Seconds on one core: for tests and for trying out a launcher."""
    model = GlomoConfig(width=16, heads=2, layers=2, key_layers=1, query_layers=1)
    return replace(
        base(), model=model, window=16, global_batch=4, steps=4, positions_per_sequence=4, checkpoint_every=2
    )


def demo() -> PretrainConfig:
    """About a minute on 2 cores: the documentation and the digits (8 x 8 pixels as units) of `make demo`.

    Without learned thresholds: in so short a run they leave a third of the rows empty (relu: a sixth) and gain
    no loss for it.
    """
    return replace(
        base(), model=GlomoConfig(sparsity="relu"), window=64, global_batch=16, steps=240,
        positions_per_sequence=16, lr=2e-3, warmup_steps=20, checkpoint_every=120,
    )  # fmt: skip


def wiki_small() -> PretrainConfig:
    """A real run for a laptop: 18 million words of text in an hour of one core (55 minutes measured).

    With rotary scores: those of the paper know no distance, and in a pair of runs left four times as many rows
    empty (docs/experiments.md).
    """
    return replace(
        base(),
        model=GlomoConfig(
            width=64, heads=4, layers=2, key_layers=2, query_layers=2, distance="rotary"
        ),
        window=64, global_batch=16, steps=18_000, positions_per_sequence=16, warmup_steps=100, lr=2e-3,
        checkpoint_every=3000, log_every=10,
    )  # fmt: skip


def wiki_wide() -> PretrainConfig:
    """Twice the width of wiki_small: 30 million words in an hour and a half of two cores (87 minutes measured).

    Its graphs are worth 0.3 points more on SST-2 (docs/experiments.md, section 4).
    """
    run = wiki_small()
    return replace(run, model=replace(run.model, width=128), global_batch=32, steps=15_000)


def wiki_small_softmax() -> PretrainConfig:
    """Ablation: no sparsity. Every unit looks at all units before it: the softmax-pretrained graph."""
    run = wiki_small()
    return replace(run, model=replace(run.model, sparsity="softmax"))


def wiki_small_coupled() -> PretrainConfig:
    """Ablation: graph and features coupled. A layer's graph comes from the features of the layer below, by the linear
    maps of query and key alone, as in self-attention, and no longer from a network of its own."""
    run = wiki_small()
    return replace(run, model=replace(run.model, coupled=True, key_layers=0, query_layers=0))


def wiki_small_one_layer() -> PretrainConfig:
    """Ablation: no hierarchy, a single layer of graphs."""
    run = wiki_small()
    return replace(run, model=replace(run.model, layers=1))


def wiki_small_next_unit() -> PretrainConfig:
    """Ablation: no sequence prediction, the decoder predicts the next unit only."""
    run = wiki_small()
    return replace(run, model=replace(run.model, decoder_steps=1))


def ancestor_text() -> PretrainConfig:
    """The text model of the paper's authors with their optimizer, vocabulary from the shards.

    Learning rate, momentum, clipping and the plateau rule, with the steps between its validations, are the defaults
    of their command line.
    """
    return replace(
        base(), model=ancestor.ancestor_text(0), optimizer="sgd", lr=8.0, graph_lr_share=1.0, momentum=0.2, clip=0.25,
        schedule="plateau", valid_every=4000, plateau_patience=3, plateau_divisor=2.0,
    )  # fmt: skip


def ancestor_text_paper() -> PretrainConfig:
    """`ancestor_text` at the size of the paper: 100,000 words and one for the unknown ones, windows of 200."""
    run = ancestor_text()
    return replace(run, model=ancestor.ancestor_text(), window=200, global_batch=64, steps=100_000)


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        base, tiny, demo, wiki_small, wiki_wide, wiki_small_softmax, wiki_small_coupled,
        wiki_small_one_layer, wiki_small_next_unit, ancestor_text, ancestor_text_paper,
    )
}  # fmt: skip


def overview() -> str:
    """A line per recipe: its name and the first sentence about it."""
    lines = []
    for name, recipe in RECIPES.items():
        first = " ".join((recipe.__doc__ or "").split("\n\n")[0].split()).partition(". ")[0]
        lines.append(f"  {name:<{max(map(len, RECIPES))}}  {first.rstrip('.')}")
    return "\n".join(lines)


def get(name: str) -> PretrainConfig:
    """The recipe called `name`, or a ConfigError with near names and the list."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}.{suggest(name, RECIPES)}")
    return RECIPES[name]()
