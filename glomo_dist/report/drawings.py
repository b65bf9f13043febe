"""Graphs drawn over the words and pixels they connect, read from graph stores and the task's own data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from glomo_kernels import SparseGraph
from markupsafe import Markup
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve

from glomo_dist.graphs.store import GraphStore
from glomo_dist.report.figures import COLOURS, literal, new, style, svg
from glomo_dist.report.names import text_width
from glomo_dist.runtime.errors import DataError, GlomoError
from glomo_dist.transfer.datasets.dataset import Task, TaskData, section

WORDS = range(8, 17)  # a length that can be read; the shortest beyond it is taken otherwise
MOST_WORDS = 24
EDGES_PER_WORD = 3
CHARACTER = 0.085  # inches, of a letter as the browser draws it
FORWARD, BACKWARD = COLOURS[0], COLOURS[1]


@dataclass(frozen=True)
class Source:
    """A store (or why it cannot be read), what to call it, and where its task's data lies, as its job or its export
    had it.  known: whether anything says where that is."""

    name: str
    store: GraphStore | GlomoError
    task_source: str | None = None
    max_examples: int | None = None
    known: bool = True

    @property
    def data(self) -> tuple[str | None, str | None, int | None]:
        """What its task's data depend on: the task, its source, max_examples."""
        task = None if isinstance(self.store, GlomoError) else self.store.info.task
        return task, self.task_source, self.max_examples


Load = Callable[[str, str | None, int | None], TaskData]  # task, its source, max_examples


@dataclass(frozen=True)
class Drawing:
    """Figures of one example, and a sentence on how to read them."""

    title: str
    caption: str
    figures: list[Markup]


@dataclass(frozen=True)
class Example:
    """units: words, or one image as an array.  forward, backward: dense graphs [components, T, T], of an image their
    mean [1, T, T]."""

    units: Any
    forward: np.ndarray[Any, Any]
    backward: np.ndarray[Any, Any]


def draw(source: Source, tasks: Mapping[str, Task], load: Load) -> Drawing:
    """The first column of one test example of the store. DataError if the data at hand are not those of the store, or
    its task is not among `tasks`."""
    store = source.store
    if isinstance(store, GlomoError):
        raise store
    if store.info.task not in tasks:
        raise DataError(
            f"{store.folder}: graphs of task {store.info.task!r}, which is not of the package: give its file with "
            "--tasks PATH.py."
        )
    task = tasks[store.info.task]
    data = load(task.name, source.task_source, source.max_examples)
    if data.fingerprint != store.info.data:
        raise DataError(
            f"{store.folder}: graphs of other data than {source.task_source or 'the bundled data'} of task "
            f"{task.name!r} (fingerprint {store.info.data}, found {data.fingerprint})."
        )
    split = data.splits["test"]
    name = next(iter(task.columns))
    column, graphs = split.columns[name], section("test", name)
    inputs = [column.values[v] for v in column.of[:, 0]]
    words = task.unit == "words"
    number = _choose(inputs) if words else 0
    value = int(column.of[number, 0])
    units = min(int(store.units(graphs)[value]), MOST_WORDS)
    shown = [dense(graph, units) if words else averaged(graph) for graph in store.batch(graphs, [value])]
    example = Example(inputs[number] if words else np.asarray(inputs[number]), *shown)
    title = f"{source.name}: {task.name}, test example {number}"
    if data.classes and split.labels.ndim == 1:
        title += f" (class {data.classes[int(split.labels[number])]})"
    return drawn(title, example, store.info.layers, store.info.heads)


def drawn(title: str, example: Example, layers: int, heads: int) -> Drawing:
    """Of a text its words with arcs, and each layer and head by itself; of an image what some pixels draw from."""
    if isinstance(example.units, np.ndarray):
        caption = (
            "What four pixels (squares) draw from, all layers and heads averaged: in blue pixels before it in "
            "reading order, in orange pixels after it, the fuller the stronger."
        )
        return Drawing(title, caption, [pixels_figure(example.units, example, title)])
    words = list(example.units[: len(example.forward[0])])
    caption = (
        "Left: all layers and heads averaged. Each word draws from the words its lines lead to: blue lines to "
        "words before it, orange ones to words after it, the wider the stronger. Right: each layer and head by "
        "itself; the row of a word shows what it draws from (below the diagonal what comes before)."
    )
    figures = [words_figure(words, example), components_figure(example, layers, heads, title)]
    return Drawing(title, caption, figures)


def words_figure(words: Sequence[str], example: Example) -> Markup:
    """Words below one another; arcs on the left to words before, on the right to words after."""
    n = len(words)
    half = CHARACTER * max(map(text_width, words)) / 2 + 0.1
    reach = 0.3 + 0.07 * n
    with style():
        # The axes fill the figure and count in inches across, so that arcs begin where the longest word ends.
        figure, (axes,) = new(2 * (half + reach), 0.27 * n + 0.1)
        figure.subplots_adjust(0, 0, 1, 1)
        for graph, side, colour in ((example.forward, -1, FORWARD), (example.backward, 1, BACKWARD)):
            for i, j, weight in strongest(graph.mean(0), EDGES_PER_WORD * n):
                # A cubic curve comes three quarters of the way to its control points.
                out = side * (half + reach / 0.75 * (abs(i - j) / n) ** 0.7)
                curve = Curve(
                    [(side * half, i), (out, i), (out, j), (side * half, j)],
                    [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
                )
                strength = min(1.0, weight**0.7)
                axes.add_patch(
                    PathPatch(
                        curve,
                        fill=False,
                        edgecolor=colour,
                        linewidth=0.4 + 3 * strength,
                        alpha=0.15 + 0.75 * strength,
                    )
                )
        for i, word in enumerate(words):
            axes.text(0, i, literal(word), ha="center", va="center", fontsize=10)
        axes.set_xlim(-half - reach, half + reach)
        axes.set_ylim(n - 0.5, -0.5)
        axes.axis("off")
        return svg(figure, "Strongest edges between the words: " + " ".join(words))


def components_figure(example: Example, layers: int, heads: int, title: str) -> Markup:
    """One square per layer (down) and head (across), forward and backward graph in one."""
    with style():
        side = min(2.2, 5.4 / heads)
        figure, axes = new(side * heads, (side + 0.1) * layers, layers, heads)
        for component, ax in enumerate(axes):
            ax.imshow(_tint(example.forward[component], example.backward[component]), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(True)
                spine.set_alpha(0.3)
            ax.set_title(
                f"layer {component // heads}, head {component % heads}", fontsize=8 if side > 1 else 6, pad=3
            )
        figure.subplots_adjust(wspace=0.08, hspace=0.25)
        return svg(figure, f"Graphs of every layer and head. {title}")


def pixels_figure(image: np.ndarray[Any, Any], example: Example, title: str) -> Markup:
    """The image, then for each of four query pixels the image with what the pixel draws from."""
    height, width = image.shape[:2]
    queries = _query_pixels(image)
    with style():
        figure, axes = new(7.4, 7.4 / (len(queries) + 1) * height / width + 0.1, 1, len(queries) + 1)
        forward, backward = example.forward.mean(0), example.backward.mean(0)
        for ax, query in zip(axes, [None, *queries], strict=True):
            if query is None:
                ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            else:
                ax.imshow(image, cmap="gray", vmin=0, vmax=255, alpha=0.35, interpolation="nearest")
                heat = _tint(forward[query][None], backward[query][None]).reshape(height, width, 4)
                ax.imshow(heat, interpolation="nearest")
                at = query % width - 0.5, query // width - 0.5
                ax.add_patch(Rectangle(at, 1, 1, fill=False, edgecolor="#c0504d", linewidth=1.6))
            ax.axis("off")
        figure.subplots_adjust(wspace=0.06)
        return svg(figure, f"What pixels draw from. {title}")


def strongest(graph: np.ndarray[Any, Any], count: int) -> list[tuple[int, int, float]]:
    """The `count` largest positive entries (row, column, weight) of [T, T], weakest first: strong ones lie on top."""
    order = np.argsort(graph, axis=None, kind="stable")[-count:]
    rows, columns = np.unravel_index(order, graph.shape)
    return [
        (int(i), int(j), float(graph[i, j])) for i, j in zip(rows, columns, strict=True) if graph[i, j] > 0
    ]


def _tint(forward: np.ndarray[Any, Any], backward: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """RGBA of two graphs that share no edge: colour says the direction, opacity the share of the row's largest."""
    picture = np.zeros((*forward.shape, 4))
    for graph, colour in ((forward, FORWARD), (backward, BACKWARD)):
        largest = graph.max(-1, keepdims=True)
        picture[graph > 0, :3] = to_rgb(colour)
        picture[..., 3] = np.maximum(
            picture[..., 3], np.divide(graph, largest, out=np.zeros_like(graph), where=largest > 0)
        )
    return picture


def _query_pixels(image: np.ndarray[Any, Any]) -> list[int]:
    """Four pixels in raster order: the brightest of each quarter of the rows, since blank ones say little."""
    flat = image.reshape(*image.shape[:2], -1).mean(-1)
    height, width = flat.shape
    bounds = np.linspace(0, height, min(4, height) + 1).astype(int)
    return [
        int(top * width + flat[top:bottom].argmax()) for top, bottom in itertools.pairwise(bounds.tolist())
    ]


def _choose(units: Sequence[Sequence[str]]) -> int:
    """The first example that is neither too short to show anything nor too long to read."""
    fitting = (i for i, words in enumerate(units) if len(words) in WORDS and len("".join(words)) < 90)
    fallback = min(
        range(len(units)), key=lambda i: (len(units[i]) < WORDS.start, abs(len(units[i]) - WORDS.stop))
    )
    return next(fitting, fallback)


def dense(graph: SparseGraph, units: int) -> np.ndarray[Any, Any]:
    """[components, units, units] of a batch of one."""
    return graph.dense()[0, :, :units, :units].numpy().astype(np.float64)  # type: ignore[no-any-return]


def averaged(graph: SparseGraph) -> np.ndarray[Any, Any]:
    """[1, T, T], the mean over the components of a batch of one: each one dense would be gigabytes for an image."""
    _, components, T = graph.shape
    mean = torch.zeros(T * T, dtype=torch.float64)
    at = graph.rows() % T * T + graph.columns
    return mean.index_add_(0, at, graph.weights.double() / components).view(1, T, T).numpy()
