"""``kdcache reproduce``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE
from kdcache.errors import KdcacheError, UsageError, problem

if TYPE_CHECKING:
    from kdcache.study.expand import TableCell

__all__ = ["reproduce"]

PATH = click.Path(path_type=Path)


@click.command("reproduce", help=COMMANDS["reproduce"].about)
@click.argument("study", metavar="STUDY")
@click.option("--profile", default="paper", show_default=True, help="paper, or mini for what a small machine can do.")
@click.option("--pairs", help="Teacher/student pairs of the study, separated by commas [all].")
@click.option("--rows", help="Rows of the study, separated by commas [all].")
@click.option("--seeds", type=click.IntRange(1), help="Runs of each student [the setting's].")
@click.option("--weights", multiple=True, metavar="MODEL=FILE", help="Load this teacher instead of training it.")
@click.option("--out", default="studies", show_default=True, type=PATH, help="Folder for runs and tables.")
@click.option("--dry-run", is_flag=True, help="Tell what it takes, and train nothing.")
@click.option("--show", is_flag=True, help="Lay out what is finished, and train nothing.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs at once.")
@click.option(
    "--launcher",
    default="local",
    show_default=True,
    type=click.Choice(["local", "slurm", "ray"]),
    help="Where runs are computed.",
)
@click.option("--launcher-option", "options", multiple=True, metavar="NAME=VALUE", help="As slurm_partition=gpu.")
@click.option("--data-root", type=PATH, help="Folder that holds downloaded datasets [datasets].")
@click.option("--cache-limit", help="Room for the answers of each teacher, as in '50 GB' [student-train's].")
@DEVICE
def reproduce(
    study: str,
    profile: str,
    pairs: str | None,
    rows: str | None,
    seeds: int | None,
    weights: tuple[str, ...],
    out: Path,
    dry_run: bool,
    show: bool,
    jobs: int,
    launcher: str,
    options: tuple[str, ...],
    data_root: Path | None,
    cache_limit: str | None,
    device: str,
) -> None:
    """Reproduce a table or figure."""
    from kdcache.study.expand import expand_study, filter_cells, runs_of
    from kdcache.study.plan import read_study

    common = {"data_root": data_root, "device": None if device == "auto" else device}
    chosen = read_study(study)
    planned = expand_study(
        chosen,
        profile,
        out,
        seeds=seeds,
        weights=_named("--weights", weights),
        common={name: value for name, value in common.items() if value is not None},
        student={"cache_limit": cache_limit} if cache_limit else {},
    )
    wanted = filter_cells(planned, _listed(pairs), _listed(rows), seeds)
    if problems := [line for run in runs_of(planned) for line in run.problems()]:
        raise UsageError(*problems)
    if dry_run:
        _tell_costs(wanted)
        return
    failed = [] if show else _train(wanted, jobs, launcher, out, _named("--launcher-option", options))
    from kdcache.report.tables import show as print_table
    from kdcache.report.tables import table
    from kdcache.study.reproduce import lay_out

    out.mkdir(parents=True, exist_ok=True)
    place = out / f"{chosen.name}-{profile}"
    try:
        for sheet in lay_out(chosen, planned, place, device):
            print_table(table(*sheet))
        click.echo(f"written: {place}.md")
    finally:
        for name in failed:
            click.echo(f"failed: {name}", err=True)
    if failed:
        raise KdcacheError(f"{len(failed)} of the runs failed; the same command tries them again")


def _train(cells: "list[TableCell]", jobs: int, launcher: str, out: Path, options: dict[str, str]) -> list[str]:
    from kdcache.study.launch import launcher as make
    from kdcache.study.reproduce import train

    return train(cells, make(launcher, jobs, (out / "launcher").absolute(), options), click.echo)


def _listed(text: str | None) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(",")] if text else []


def _named(option: str, given: tuple[str, ...]) -> dict[str, str]:
    """Split NAME=VALUE."""
    if odd := [text for text in given if "=" not in text]:
        raise UsageError(problem(option, expected="NAME=VALUE", got=odd[0]))
    return dict(text.split("=", 1) for text in given)


def _tell_costs(cells: "list[TableCell]") -> None:
    from kdcache.report.tables import file_size, show, table
    from kdcache.study.budget import study_budget
    from kdcache.study.expand import column_titles, runs_of
    from kdcache.study.timing import hours

    found, runs = study_budget(cells), runs_of(cells)
    titles = column_titles(cell.column for cell in cells)
    for run in runs:
        click.echo(shlex.join(["kdcache", *run.arguments]) + ("  # finished" if run.finished else ""))
    lines = [
        (cell.row.name, titles[cell.column], str(len(cell.runs)), str(unfinished), f"{uncached:,}")
        for cell, unfinished, uncached in found.cells
    ]
    show(table("What it takes", ("row", "pair", "runs", "left", "questions online"), lines))
    click.echo(f"runs: {len(runs)}, of which {sum(run.finished for run in runs)} are finished")
    click.echo(f"teacher questions, each run for itself: {found.uncached:,}")
    click.echo(
        f"with a store for each teacher: {found.shared.forwards + found.without_store:,}, "
        f"of which {found.without_store:,} are asked "
        "by losses that read features, which no store holds, or by runs without a store"
    )
    click.echo(f"bytes of these stores: {file_size(found.shared.stored_bytes)}")
    if found.limited != found.shared:
        click.echo(
            f"within --cache-limit: {found.limited.forwards + found.without_store:,} questions, "
            f"{file_size(found.limited.stored_bytes)}"
        )
    click.echo("timing each network for a second ...", err=True)
    click.echo(f"estimate: {hours(cells):.1f} hours on this device, one run after the other, with stores in that limit")
