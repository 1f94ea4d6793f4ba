"""Style of the charts: colors that color-blind readers can distinguish, and output as files or inline SVG."""

import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from kdcache.files import write_atomically

__all__ = ["SeriesStyle", "inline_svg", "series_styles", "write_figure"]

# Okabe and Ito's palette without yellow and black, which are hard to see on a white or a dark background.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")

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


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, depending on the suffix."""
    format = path.suffix.removeprefix(".") or "png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=format, dpi=120))


def inline_svg(draw: Callable[[], Figure], name: str) -> str:
    """Draw a figure as an SVG element in the text color of the page around it.

    Parameters
    ----------
    draw : callable
        Makes the figure.
    name : str
        Prefix of all identifiers, which keeps those of several figures on a page distinct.
    """
    with matplotlib.rc_context(_PAGE_STYLE):
        text = StringIO()
        draw().savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace(TEXT_COLOR, "currentColor")
