"""Tables on the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from kdcache.analysis.disagreement import PAPER_PERCENT, Disagreement, Share

__all__ = ["disagreement_table", "show", "table"]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Make a table whose first column holds words and whose others hold figures."""
    made = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        made.add_column(name, justify="right" if place else "left")
    for row in rows:
        made.add_row(*row)
    return made


def show(made: Table) -> None:
    """Print a table as wide as it needs to be where the output is no terminal."""
    console = Console()
    console.print(made) if console.is_terminal else Console(width=100).print(made)


def disagreement_table(title: str, found: Disagreement, clean_error: Share) -> Table:
    """Lay out label disagreement beside the teacher's clean error and the paper's figure."""
    rows = [
        ("all mixed samples", found.overall),
        ("pairs of two classes", found.two_classes),
        ("pairs of one class", found.same_class),
        *((f"lambda {low:.1f} to {high:.1f}", share) for low, high, share in found.by_lambda),
        ("teacher's error on the clean images", clean_error),
    ]
    lines = [(name, _percent(share), _interval(share), str(share.of)) for name, share in rows]
    lines.append(("the paper (ImageNet, ResNet34)", f"{PAPER_PERCENT:.1f} %", "", ""))
    return table(title, ("the teacher disputes the label of", "share", "95 % interval", "samples"), lines)


def _percent(share: Share) -> str:
    return "-" if share.percent is None else f"{share.percent:.1f} %"


def _interval(share: Share) -> str:
    return "-" if share.interval is None else "{:.1f} to {:.1f}".format(*share.interval)
