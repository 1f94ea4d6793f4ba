"""``kdcache report``."""

from pathlib import Path

import click

from kdcache.cli.options import DEVICE
from kdcache.errors import UsageError, printable, problem

__all__ = ["report"]

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option(
    "--format",
    "format_",
    default="html",
    show_default=True,
    type=click.Choice(["html", "markdown", "csv", "json"]),
    help="HTML page with charts, Markdown tables, CSV with a line per group of runs, or JSON with everything.",
)
@click.option("--out", type=PATH, help="File to write [html: report.html; other formats are printed].")
@click.option(
    "--samples",
    default=0,
    type=click.IntRange(0),
    help="Measure label disagreement of each teacher on so many CutMix samples, such as 2000 [not measured].",
)
@click.option("--evaluate", "evaluates", is_flag=True, help="Evaluate the networks too, as kdcache evaluate does.")
@click.option("--dataset", help="The runs' images, if they were moved [where they were].")
@click.option("--data-root", type=PATH, help="Folder of downloaded datasets [the runs'].")
@DEVICE
def report(
    runs: tuple[Path, ...],
    format_: str,
    out: Path | None,
    samples: int,
    evaluates: bool,
    dataset: str | None,
    data_root: Path | None,
    device: str,
) -> None:
    """Report on runs: an HTML page with tables and charts, or Markdown, CSV or JSON.

    Each RUN is a run folder, or a folder of run folders. The report begins with what came out: the best student beside
    its teacher and beside training on labels alone. What is missing, unfinished or damaged is listed at the end. It
    shows what the runs recorded, and measures nothing unless --samples or --evaluate is given.
    """
    from kdcache.analysis.summary import summarize_runs
    from kdcache.files import require_writable_file, write_text

    if evaluates and format_ == "csv":
        remedy = "Use 'kdcache evaluate --format csv'."
        raise UsageError(problem("--evaluate", expected="another --format", got=format_, remedy=remedy))
    if samples and format_ == "csv":
        remedy = "Use 'kdcache analyze disagreement'."
        raise UsageError(problem("--samples", expected="another --format", got=format_, remedy=remedy))
    path = out or (Path("report.html") if format_ == "html" else None)
    if path is not None:
        require_writable_file(path)
    summary = summarize_runs(runs, samples, data_root, device, dataset, evaluates)
    if format_ == "html":
        from kdcache.report.page import render_page

        text = render_page(summary)
    else:
        from kdcache.report.text_formats import TEXT_FORMATS

        text = TEXT_FORMATS[format_](summary)
    for line in summary.missing:
        click.echo(f"kdcache: {line}", err=True)
    if path is None:
        click.echo(text, nl=False)
        return
    write_text(path, text)
    click.echo(printable(f"report: {path}"))
