"""graphs.html: what a predictor sees in texts or images of one's own, drawn and in numbers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from glomo_kernels import SparseGraph

from glomo_dist.data.preparing.images import pictures
from glomo_dist.data.tokenizers.pixels import PixelTokenizer
from glomo_dist.data.tokenizers.text import WordTokenizer, between_spaces, tokenize
from glomo_dist.graphs.export import require_graph_kernels
from glomo_dist.report.drawings import Drawing, Example, averaged, dense, drawn
from glomo_dist.report.names import one_line, ruled
from glomo_dist.report.pages import rendered, require_file, write_page
from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.paths import output
from glomo_dist.runtime.words import counted
from glomo_dist.transfer.predictor import Predictor

HEADER = ("layer, head", "before: edges", "empty", "distance", "after: edges", "empty", "distance")


@dataclass(frozen=True)
class Seen:
    """One input. notes: what the predictor did not see of it. rows: of each layer and head, as HEADER says."""

    drawing: Drawing
    notes: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class _Input(NamedTuple):
    """title: of the drawing.  units: words, or an image as the predictor takes it.  ids int32 [T]."""

    title: str
    units: list[str] | np.ndarray
    ids: np.ndarray
    notes: tuple[str, ...]


def look(
    model: str | Path,
    inputs: Sequence[str],
    out: str | Path,
    *,
    keep: int | None = 8,
    random_seed: int | None = None,
    max_units: int = 60,
    images: int = 4,
    tokenised: bool = False,
) -> list[Seen]:
    """Write the page `out` with the graphs that the predictor in `model` sees in each of the inputs, and return them.

    inputs: texts, or of a predictor of pixels what `glomo prepare images` takes; they are brought to its size.
    keep, random_seed: as for `export_task`.  max_units: words of a text; longer ones are cut, as before an export.
    images: so many at most.  tokenised: the units of a text are what stands between spaces, as in a .tokens file.
    Raises ConfigError for an input that is no text, DataError for one that is no image.
    """
    out = output(out)
    require_file(out, "graphs.html")
    predictor = Predictor(model, random_seed)
    require_graph_kernels(predictor.model.config)
    tokenizer = predictor.tokenizer
    given: Iterable[_Input]
    if isinstance(tokenizer, PixelTokenizer):
        given = itertools.islice(_images(tokenizer, inputs), images)
    else:
        cut = between_spaces if tokenised else tokenize
        given = _texts(predictor.folder, tokenizer, inputs, max_units, cut)
    seen = [_seen(predictor, one, keep) for one in given]
    trained = "" if random_seed is None else f", random parameters of seed {random_seed}"
    kept = "all edges" if keep is None else f"the {counted(keep, 'largest edge')} of a row"
    config = predictor.model.config
    facts = f"{counted(config.layers, 'layer')}, {counted(config.heads, 'head')}{trained}, {kept}"
    unit = tokenizer.kind.removesuffix("s")
    page = rendered("graphs.html", name=str(model), facts=facts, seen=seen, header=HEADER, unit=unit)
    write_page(out, page)
    return seen


def as_text(seen: Sequence[Seen]) -> str:
    """The numbers, for a terminal."""
    return "\n\n".join(
        "\n".join([one_line(one.drawing.title), *map(one_line, one.notes), *ruled([HEADER, *one.rows])])
        for one in seen
    )


def _texts(
    folder: str | Path,
    tokenizer: WordTokenizer,
    inputs: Sequence[str],
    max_units: int,
    cut: Callable[[str], list[str]],
) -> Iterator[_Input]:
    for number, text in enumerate(inputs, 1):
        if os.path.isfile(text):
            raise ConfigError(
                f"{text} is a file, and the predictor in {folder} one of words. Give the texts "
                f'themselves, e.g. "$(cat {text})".'
            )
        words = cut(text)
        if not words:
            raise ConfigError(f"text {number} ({text!r}) has no word in it.")
        notes, units = [], words[:max_units]
        if len(words) > max_units:
            notes.append(f"The first {max_units} of {len(words):,} words (--max-units).")
        ids = tokenizer.encode(units)
        if unknown := dict.fromkeys(word for word, i in zip(units, ids.tolist(), strict=True) if i == 0):
            notes.append(f"Not in the vocabulary: {', '.join(unknown)}.")
        yield _Input(text if len(text) <= 80 else f"{text[:79]}…", units, ids, tuple(notes))


def _images(tokenizer: PixelTokenizer, inputs: Sequence[str]) -> Iterator[_Input]:
    for picture in pictures(inputs, size=tokenizer.shape, channels=tokenizer.channels):
        yield _Input(picture.where, picture.pixels, tokenizer.encode(picture.pixels), ())


def _seen(predictor: Predictor, one: _Input, keep: int | None) -> Seen:
    ids = torch.from_numpy(one.ids).long()[None]
    with torch.inference_mode():
        graphs = predictor.model.graphs(ids, torch.tensor([ids.shape[1]]), keep=keep)
    shown = [averaged(g) if isinstance(one.units, np.ndarray) else dense(g, ids.shape[1]) for g in graphs]
    layers, heads = predictor.model.config.layers, predictor.model.config.heads
    drawing = drawn(one.title, Example(one.units, *shown), layers, heads)
    before, after = map(_numbers, graphs)
    names = [f"layer {layer}, head {head}" for layer in range(layers) for head in range(heads)]
    return Seen(
        drawing, one.notes, tuple((name, *a, *b) for name, a, b in zip(names, before, after, strict=True))
    )


def _numbers(graph: SparseGraph) -> list[tuple[str, str, str]]:
    """Of each component of a batch of one: edges of a row in the mean, share of empty rows, mean distance.

    Of the rows that have units to look at, which are all but one.
    """
    _, components, T = graph.shape
    rows, columns, weights = (x.numpy() for x in (graph.rows(), graph.columns, graph.weights))
    component, possible = rows // T, max(T - 1, 1)
    live = np.bincount(np.unique(rows) // T, minlength=components)
    edges = np.bincount(component, minlength=components)
    total = np.bincount(component, weights, components)
    apart = np.bincount(component, weights * abs(rows % T - columns), components)
    return [
        (
            f"{edges[c] / possible:.1f}",
            f"{1 - live[c] / possible:.0%}",
            f"{apart[c] / total[c]:.1f}" if total[c] else "–",
        )
        for c in range(components)
    ]
