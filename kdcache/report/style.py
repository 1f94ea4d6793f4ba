"""Style of the charts: colors that color-blind readers can distinguish, and output as files or inline SVG."""

import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdcache.files import write_atomically
from kdcache.report.tables import shortened

__all__ = ["MAX_SERIES", "Drawing", "LegendEntry", "SeriesStyle", "inline_svg", "series_styles", "write_figure"]

# Okabe and Ito's palette without yellow and black, which are hard to see on a white or a dark background.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's markers, and how text shows them."""

MAX_SERIES = len(COLORS)
"""Series of a chart: more would share color and marker."""

LEGEND_CHARS, LEGEND_LINE = 60, 0.2
"""Length of a name in the legend of a file, and inches for each."""

TEXT_COLOR = "#010203"
"""Placeholder that `inline_svg` replaces by the page's text color."""

_PAGE_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT_COLOR),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor", "savefig.facecolor"), "none"),
    "grid.color": "#888888",
    "svg.fonttype": "none",  # keeps text as text
    "svg.hashsalt": "kdcache",
    "font.family": "sans-serif",
}


class SeriesStyle(NamedTuple):
    """Color, line style and marker of a series."""

    color: str
    linestyle: str
    marker: str


def series_styles() -> Iterator[SeriesStyle]:
    """Yield styles; neighbors differ in color, line style and marker."""
    return map(SeriesStyle, cycle(COLORS), cycle(LINE_STYLES), cycle(MARKERS))


class LegendEntry(NamedTuple):
    """A series of a chart as its legend shows it: name, color, and marker as a character."""

    name: str
    color: str
    marker: str


class Drawing(NamedTuple):
    """A chart as an SVG element, and the legend to show beside it."""

    svg: str
    legend: tuple[LegendEntry, ...]


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, depending on the suffix.

    Series that have no legend in their axes get one below the plot, which keeps its size whatever the names.
    """
    if series := _series_without_legend(figure):
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (1 + len(series)))
        names = [shortened(name, LEGEND_CHARS) for name in series]
        figure.legend([*series.values()], names, loc="outside lower left", fontsize=8, frameon=False)
    format = path.suffix.removeprefix(".") or "png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=format, dpi=120))


def inline_svg(draw: Callable[[], Figure], name: str) -> Drawing:
    """Draw a figure as an SVG element in the text color of the page around it, with its legend apart.

    Parameters
    ----------
    draw : callable
        Makes the figure.
    name : str
        Prefix of all identifiers, which keeps those of several figures on a page distinct.
    """
    with matplotlib.rc_context(_PAGE_STYLE):
        text = StringIO()
        figure = draw()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    entries = (
        LegendEntry(name, str(line.get_color()), MARKERS.get(str(line.get_marker()), "–"))
        for name, line in _series_without_legend(figure).items()
    )
    return Drawing(svg.replace(TEXT_COLOR, "currentColor"), tuple(entries))


def _series_without_legend(figure: Figure) -> dict[str, Line2D]:
    lines = (line for axes in figure.axes if axes.get_legend() is None for line in axes.get_lines())
    named = ((str(line.get_label()), line) for line in lines)
    return {name: line for name, line in named if not name.startswith("_")}
