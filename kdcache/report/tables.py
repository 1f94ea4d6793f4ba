"""Tables of text for the terminal, Markdown files and the HTML report, and how their numbers are formatted."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from kdcache.analysis.estimates import MeanStd, Proportion
from kdcache.errors import printable

__all__ = [
    "TextTable",
    "csv_text",
    "file_size",
    "format_interval",
    "format_mean_std",
    "format_percent",
    "format_probabilities",
    "format_whole",
    "make_table",
    "shortened",
    "show",
    "to_markdown",
]

REDIRECTED_WIDTH = 200
"""Characters in a line of a table whose output is a file or pipe."""

Item = TypeVar("Item")


class TextTable(NamedTuple):
    """A table of text. The first column names the row, the other columns hold numbers.

    Attributes
    ----------
    title : str
    header : sequence of str
    rows : sequence of sequence of str
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def make_table(title: str, items: Iterable[Item], columns: Mapping[str, Callable[[Item], object]]) -> TextTable:
    """Make a table with a row for each item.

    Parameters
    ----------
    title : str
    items : iterable
    columns : mapping of str to callable
        Each column's header, and the function that returns an item's text; ``None`` is shown as ``-``.
    """
    rows = [tuple(_text(column(item)) for column in columns.values()) for item in items]
    return TextTable(title, tuple(columns), rows)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def show(table: TextTable) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def cell(text: str) -> str:
        return escape(printable(text))

    drawn = Table(title=cell(table.title), title_justify="left")
    for position, name in enumerate(map(cell, table.header)):
        drawn.add_column(name, justify="right" if position else "left")
    for row in table.rows:
        drawn.add_row(*map(cell, row))
    console = Console()
    console.print(drawn) if console.is_terminal else Console(width=REDIRECTED_WIDTH).print(drawn)


def to_markdown(table: TextTable) -> str:
    """Format a table as Markdown, with its title as a heading."""
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    return "\n".join(
        [f"## {_escape(table.title)}", "", *("| " + " | ".join(map(_escape, line)) + " |" for line in lines)]
    )


def _escape(text: str) -> str:
    for character in "\\|<>*_`[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def csv_text(value: object) -> object:
    """Quote text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" else value


def file_size(size: int) -> str:
    """Format a number of bytes in decimal units, such as ``1.5 GB``."""
    from rich.filesize import decimal

    return str(decimal(size))


def format_mean_std(value: MeanStd, digits: int = 2) -> str:
    """Format a mean with its standard deviation, such as ``75.59 (0.22)``."""
    if value.mean is None:
        return _unknown(value)
    return f"{value.mean:.{digits}f}" + ("" if value.std is None else f" ({value.std:.{digits}f})")


def format_whole(value: MeanStd) -> str:
    """Format a mean as a whole number."""
    return _unknown(value) if value.mean is None else f"{value.mean:.0f}"


def _unknown(value: MeanStd) -> str:
    return "damaged" if value.damaged else "-"


def format_percent(value: Proportion) -> str:
    """Format a proportion in percent."""
    return "-" if value.percent is None else f"{value.percent:.1f} %"


def format_probabilities(probabilities: Sequence[tuple[str, float]], separator: str) -> str:
    """Format class names with their probabilities."""
    return separator.join(f"{name} {probability:.2f}" for name, probability in probabilities)


def shortened(name: str, limit: int) -> str:
    """Shorten a name to a number of characters in its middle, since names mostly differ at an end."""
    head = limit // 2
    return name if len(name) <= limit else f"{name[:head]}…{name[head + 1 - limit :]}"


def format_interval(value: Proportion) -> str:
    """Format the confidence interval of a proportion in percent."""
    return "-" if value.interval is None else "{:.1f} to {:.1f}".format(*value.interval)
