"""matplotlib figures as inline SVG that takes its text colour from the page, so one figure suits light and dark."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glomo_dist.report.names import printable

# Okabe and Ito's colours that can be told apart by everyone and stand out on white and on near-black.
COLOURS = ("#3b82c4", "#d9822b", "#2a9d78", "#b8609a", "#8a8f98", "#c9a227", "#56b4e9", "#c0504d")
_INK = "#010203"  # replaced by currentColor
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "glomo",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Context manager with the settings of all figures: `with style(): figure, axes = new(...)`."""
    with plt.rc_context(_SETTINGS), warnings.catch_warnings():  # type: ignore[arg-type]
        # The browser draws the text, in fonts of its own.
        warnings.filterwarnings("ignore", r"Glyph .* missing|Matplotlib currently does not support")
        yield


def new(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: object
) -> tuple[Figure, list[Axes]]:
    """A figure of inches and its axes, row by row."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)  # type: ignore[call-overload]
    return figure, list(axes.flat)


def svg(figure: Figure, title: str) -> Markup:
    """The figure as one <svg> element that scales with the page. title: read out by screen readers, escaped."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The first width and height are those of the element; in em-free points they also cap its size on a wide page.
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])  # type: ignore[index]
    text = re.sub(
        r'height="[\d.]+pt"',
        f'style="width:100%;max-width:{width * 4 / 3:.0f}px;height:auto" role="img"',
        text,
        count=1,
    )
    text = re.sub(r'width="[\d.]+pt"', "", text, count=1)
    text = re.sub(r"<[^>]*>", lambda tag: tag[0].replace(_INK, "currentColor"), text)
    head, bracket, rest = text.partition(">")
    return Markup(head + bracket) + Markup("<title>{}</title>").format(title) + Markup(rest)


def with_own_ids(page: str) -> str:
    """The page with other ids in each <svg>: matplotlib's are the same in all figures."""
    numbers = itertools.count(1)

    def renamed(figure: re.Match[str]) -> str:
        own = rf"\g<1>figure{next(numbers)}-"
        return re.sub(r"<[^>]*>", lambda tag: re.sub(r'((?<= )id="|href="#|url\(#)', own, tag[0]), figure[0])

    return re.sub(r"<svg .*?</svg>", renamed, page, flags=re.DOTALL)


def literal(text: str) -> str:
    """`text` for matplotlib without its mathematics: a word with two dollar signs is a word."""
    return printable(text).replace("$", r"\$")


def legend_below(axes: Axes, *given: object) -> None:
    """given: lines and their names, where these are not the labels of the lines."""
    axes.legend(*given, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)


def percent_axis(axes: Axes, axis: str = "x") -> None:
    """Label an axis of shares in percent."""
    target = axes.xaxis if axis == "x" else axes.yaxis
    target.set_major_formatter(lambda value, _: f"{100 * value:g}")


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Running mean over `width` neighbours, fewer at the ends; centred, so that it does not lag behind.

    values: finite.
    """
    at, half = np.arange(len(values)), width // 2
    first, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=float)])
    return ((sums[end] - sums[first]) / (end - first)).tolist()  # type: ignore[no-any-return]
