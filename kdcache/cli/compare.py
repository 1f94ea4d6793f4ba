"""``kdcache compare``."""

import json
from pathlib import Path

import click

from kdcache.cli import COMMANDS
from kdcache.errors import UsageError, problem

__all__ = ["compare"]


class TwoSides(click.Command):
    """A command with arguments on both sides of ``--``, which click itself would drop."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Keep the arguments on the right in ``context.meta``, and parse those on the left."""
        position = arguments.index("--") if "--" in arguments else len(arguments)
        context.meta["right"] = arguments[position + 1 :]
        return super().parse_args(context, arguments[:position])


@click.command("compare", cls=TwoSides, help=COMMANDS["compare"].about)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="RUN... -- RUN...")
@click.option(
    "--confidence-level",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0.5, 0.9999),
    help="Confidence level of the intervals.",
)
@click.option("--format", "format_", default="text", show_default=True, type=click.Choice(["text", "json"]))
@click.pass_context
def compare(context: click.Context, runs: tuple[Path, ...], confidence_level: float, format_: str) -> None:
    """Compare the runs on the left of -- with those on the right."""
    from kdcache.report.tables import show
    from kdcache.run.records import load_runs
    from kdcache.study.comparison import compare_runs
    from kdcache.study.result_tables import comparison_table

    right = tuple(map(Path, context.meta["right"]))
    if not runs or not right:
        raise UsageError(problem("kdcache compare", expected="run folders on both sides of --, as in A0 A1 -- B0 B1"))
    sides = []
    for paths in (runs, right):
        loaded = load_runs(paths)
        if loaded.damaged:  # the difference of the others would be another figure
            raise UsageError(*loaded.damaged)
        sides.append(loaded.runs)
        for line in loaded.problems:
            click.echo(f"kdcache: {line}", err=True)
    comparison = compare_runs(sides[0], sides[1], confidence_level)
    if format_ == "json":
        click.echo(json.dumps(comparison.as_json(), indent=2))
        return
    show(comparison_table(comparison, confidence_level))
    for line in comparison.different_settings:
        click.echo(f"warning: settings differ: {line}")
