"""``kdcache compare``."""

import json
from pathlib import Path

import click

from kdcache.cli import COMMANDS
from kdcache.errors import UsageError, problem

__all__ = ["compare"]


class TwoSides(click.Command):
    """A command whose arguments stand on two sides of ``--``, which click itself would drop."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Keep what stands on the right side, and parse what stands on the left."""
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        context.meta["right"] = arguments[cut + 1 :]
        return super().parse_args(context, arguments[:cut])


@click.command("compare", cls=TwoSides, help=COMMANDS["compare"].about)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="RUN... -- RUN...")
@click.option("--level", default=0.95, show_default=True, type=click.FloatRange(0.5, 0.9999), help="Of the intervals.")
@click.option("--format", "format_", default="text", show_default=True, type=click.Choice(["text", "json"]))
@click.pass_context
def compare(context: click.Context, runs: tuple[Path, ...], level: float, format_: str) -> None:
    """Compare the runs on the left of -- with those on the right of it."""
    from kdcache.report.tables import show, table
    from kdcache.run.records import load_runs
    from kdcache.study.compare import compare as compared
    from kdcache.study.sheets import comparison_sheet

    right = tuple(map(Path, context.meta["right"]))
    if not runs or not right:
        raise UsageError(problem("kdcache compare", expected="run folders on both sides of --, as in A0 A1 -- B0 B1"))
    sides = []
    for paths in (runs, right):
        looked, problems = load_runs(paths)
        sides.append(looked)
        for line in problems:
            click.echo(f"kdcache: {line}", err=True)
    found = compared(sides[0], sides[1], level)
    if format_ == "json":
        click.echo(json.dumps(found.as_json(), indent=2))
        return
    show(table(*comparison_sheet(found, level)))
    for line in found.unfair:
        click.echo(f"warning: not the same on both sides: {line}")
