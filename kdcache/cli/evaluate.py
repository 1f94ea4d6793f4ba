"""``kdcache evaluate``."""

from pathlib import Path

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE

__all__ = ["evaluate"]


@click.command("evaluate", help=COMMANDS["evaluate"].about)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--dataset", help="Other images with the same classes, or where the runs' were moved [the runs'].")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of downloaded datasets [the runs'].")
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(["test", "val", "train"]),
    help="Images to evaluate on; val are those that --val-fraction held out.",
)
@click.option("--best", is_flag=True, help="Use the networks of the best epoch instead of the last.")
@click.option(
    "--format",
    "format_",
    default="text",
    show_default=True,
    type=click.Choice(["text", "markdown", "csv", "json"]),
    help="text leaves out most classes and pairs of classes where there are many; the others have everything.",
)
@DEVICE
def evaluate(
    runs: tuple[str, ...],
    dataset: str | None,
    data_root: Path | None,
    split: str,
    best: bool,
    format_: str,
    device: str,
) -> None:
    """Evaluate networks."""
    from kdcache.analysis.evaluation import evaluate_networks
    from kdcache.analysis.evaluation_inputs import load_evaluation_inputs
    from kdcache.report.evaluation_tables import EVALUATION_FORMATS, evaluation_tables
    from kdcache.report.progress import progress_bar
    from kdcache.report.tables import show

    inputs = load_evaluation_inputs(runs, split, best, dataset, data_root, device)
    for line in inputs.problems:
        click.echo(f"kdcache: {line}", err=True)
    with progress_bar("evaluating") as progress:
        report = evaluate_networks(inputs, progress)
    if format_ != "text":
        click.echo(EVALUATION_FORMATS[format_](report), nl=False)
        return
    for table in evaluation_tables(report):
        show(table)
