"""``kdcache evaluate``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE
from kdcache.errors import printable

if TYPE_CHECKING:
    from kdcache.analysis.evaluation import EvaluationReport

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
@click.option("--best", is_flag=True, help="Use the networks of the runs' best epochs instead of the last.")
@click.option(
    "--format",
    "format_",
    default="text",
    show_default=True,
    type=click.Choice(["text", "markdown", "csv", "json"]),
    help="text leaves out most classes and pairs of classes where there are many; the others have everything.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for evaluation.json and pictures: confusion, calibration, and the worst mistakes.",
)
@DEVICE
def evaluate(
    runs: tuple[str, ...],
    dataset: str | None,
    data_root: Path | None,
    split: str,
    best: bool,
    format_: str,
    out: Path | None,
    device: str,
) -> None:
    """Evaluate networks."""
    from kdcache.analysis.evaluation import evaluate_networks
    from kdcache.analysis.evaluation_inputs import load_evaluation_inputs
    from kdcache.files import require_writable
    from kdcache.report.evaluation_tables import EVALUATION_FORMATS, evaluation_tables
    from kdcache.report.progress import progress_bar
    from kdcache.report.tables import show

    if out is not None:
        require_writable(out)
    inputs = load_evaluation_inputs(runs, split, best, dataset, data_root, device)
    for line in inputs.problems:
        click.echo(f"kdcache: {line}", err=True)
    with progress_bar("evaluating") as progress:
        report = evaluate_networks(inputs, progress)
    for line in report.problems:
        click.echo(f"kdcache: {line}", err=True)
    if format_ == "text":
        for table in evaluation_tables(report):
            show(table)
    else:
        click.echo(EVALUATION_FORMATS[format_](report), nl=False)
    if out is not None:
        _write(report, out)


def _write(report: "EvaluationReport", out: Path) -> None:
    """Write the figures and pictures; pictures of a network have its place in the list as their number."""
    from kdcache.files import write_text
    from kdcache.report.evaluation_charts import draw_confusion, draw_mistakes, draw_reliability
    from kdcache.report.evaluation_tables import as_json, with_short_names
    from kdcache.report.style import write_figure

    names, shown = report.class_names, with_short_names(report.evaluations)
    figures = {"calibration.png": draw_reliability(shown)}
    for number, one in enumerate(shown, 1):
        figures[f"confusion-{number}.png"] = draw_confusion(one, names)
        if one.mistakes:
            figures[f"mistakes-{number}.png"] = draw_mistakes(one, names)
    write_text(out / "evaluation.json", as_json(report))
    for name, figure in figures.items():
        write_figure(figure, out / name)
    click.echo(printable(f"figures and pictures: {out}: evaluation.json, {', '.join(figures)}"), err=True)
