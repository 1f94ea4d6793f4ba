"""How charts look: colours that colour-blind readers can tell apart, and pictures for files and for pages."""

import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from kdcache.files import write_atomically

__all__ = ["Look", "inline_svg", "looks", "write_figure"]

# Okabe and Ito's palette without its yellow and its black, which vanish on a white or on a dark ground.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STROKES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")

INK = "#010203"
"""Stands in a chart for the colour of the text around it."""

_PAGE_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor", "savefig.facecolor"), "none"),
    "grid.color": "#888888",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "kdcache",
    "font.family": "sans-serif",
}


class Look(NamedTuple):
    """How one series is drawn: apart from the others in colour, stroke and marker."""

    color: str
    linestyle: str
    marker: str


def looks() -> Iterator[Look]:
    """Give one series after the other a look of its own."""
    return map(Look, cycle(COLOURS), cycle(STROKES), cycle(MARKERS))


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as the file that its name says, PNG or SVG, whole or not at all."""
    format = path.suffix.removeprefix(".") or "png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=format, dpi=120))


def inline_svg(draw: Callable[[], Figure], name: str) -> str:
    """Draw a figure as an SVG element for a page, whose ink is the colour of the page's text.

    Parameters
    ----------
    draw : callable
        Makes the figure.
    name : str
        Put before every identifier, so that those of several figures do not meet.
    """
    with matplotlib.rc_context(_PAGE_STYLE):
        text = StringIO()
        draw().savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor")
