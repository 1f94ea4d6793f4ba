"""Tables on the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

__all__ = ["file_size", "show", "table"]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table whose first column holds words and whose others hold figures."""
    made = Table(title=title, title_justify="left")
    for place, name in enumerate(map(escape, head)):
        made.add_column(name, justify="right" if place else "left")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def file_size(size: int) -> str:
    """Write a number of bytes for people, in steps of a thousand."""
    return str(decimal(size))


def show(made: Table) -> None:
    """Print a table as wide as it needs to be where the output is no terminal."""
    console = Console()
    console.print(made) if console.is_terminal else Console(width=200).print(made)
