"""``kdcache report``."""

from pathlib import Path

import click

from kdcache.cli.options import DEVICE

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
    help="A page with pictures, tables, a line for each group of runs, or everything.",
)
@click.option("--out", type=PATH, help="File to write [report.html; other formats are printed].")
@click.option(
    "--samples",
    default=2000,
    show_default=True,
    type=click.IntRange(0),
    help="CutMix samples to ask each teacher about; 0 leaves label disagreement out.",
)
@click.option("--data-root", type=PATH, help="Folder that holds downloaded datasets [the runs'].")
@DEVICE
def report(
    runs: tuple[Path, ...], format_: str, out: Path | None, samples: int, data_root: Path | None, device: str
) -> None:
    """Write what runs came to: a page with tables and charts, Markdown, CSV or JSON.

    Each RUN is a run folder, or a folder that holds some. What is missing, unfinished or damaged is named, and whatever
    else is there is shown.
    """
    from kdcache.analysis.summary import summarize_runs
    from kdcache.files import write_text
    from kdcache.report.page import page
    from kdcache.report.plain import PLAIN

    summary = summarize_runs(runs, samples if format_ != "csv" else 0, data_root, device)
    text = page(summary) if format_ == "html" else PLAIN[format_](summary)
    for line in summary.missing:
        click.echo(f"kdcache: {line}", err=True)
    if out is None and format_ != "html":
        click.echo(text, nl=False)
        return
    path = out or Path("report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    click.echo(f"report: {path}")
