"""``kdcache reproduce``."""

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE
from kdcache.errors import KdcacheError, UsageError, problem

if TYPE_CHECKING:
    from kdcache.study.planned import StudyCell

__all__ = ["reproduce"]

PATH = click.Path(path_type=Path)


@click.command("reproduce", help=COMMANDS["reproduce"].about)
@click.argument("study", metavar="STUDY")
@click.option("--profile", default="paper", show_default=True, help="Protocols to train in: paper or mini.")
@click.option("--pairs", help="Teacher-student pairs to train, separated by commas [all].")
@click.option("--rows", help="Rows to train, separated by commas [all].")
@click.option("--seeds", type=click.IntRange(1), help="Number of runs of each student [the protocol's].")
@click.option("--weights", multiple=True, metavar="MODEL=FILE", help="Load this teacher instead of training it.")
@click.option("--out", default="studies", show_default=True, type=PATH, help="Folder of the runs and tables.")
@click.option("--dry-run", is_flag=True, help="Print runs, teacher forwards and bytes, and train nothing.")
@click.option("--commands", is_flag=True, help="Write the runs' config files, print their commands, and train nothing.")
@click.option("--time-steps", is_flag=True, help="Estimate the hours on this machine, and train nothing.")
@click.option("--show", is_flag=True, help="Write the tables of the finished runs, and train nothing.")
@click.option("--records", type=PATH, help="Archive of run folders to use with --show instead of those in --out.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs to train at once.")
@click.option(
    "--launcher",
    default="local",
    show_default=True,
    type=click.Choice(["local", "slurm", "ray"]),
    help="Where to train.",
)
@click.option(
    "--launcher-option",
    "launcher_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the launcher, such as slurm_partition=gpu.",
)
@click.option("--data-root", type=PATH, help="Folder of downloaded datasets [datasets].")
@click.option("--cache-limit", help="Size limit of each teacher's store, such as '50 GB' [student-train's].")
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
    commands: bool,
    time_steps: bool,
    show: bool,
    records: Path | None,
    jobs: int,
    launcher: str,
    launcher_options: tuple[str, ...],
    data_root: Path | None,
    cache_limit: str | None,
    device: str,
) -> None:
    """Reproduce a table or figure."""
    from kdcache.study.archive import extracted
    from kdcache.study.definition import read_study
    from kdcache.study.expand import expand_study
    from kdcache.study.planned import filter_cells, list_runs

    if records is not None and not show:
        raise UsageError(problem("--records", expected="with --show"))
    common = {"data_root": data_root, "device": None if device == "auto" else device}
    definition = read_study(study)
    with extracted(records) if records else nullcontext(out) as runs_folder:
        cells = expand_study(
            definition,
            profile,
            runs_folder,
            seeds=seeds,
            weights=_parse_pairs("--weights", weights),
            common={name: value for name, value in common.items() if value is not None},
            student={"cache_limit": cache_limit} if cache_limit else {},
        )
        selected = filter_cells(cells, _split(pairs), _split(rows), seeds)
        if problems := [line for run in list_runs(cells) for line in run.problems()]:
            raise UsageError(*problems)
        if dry_run or commands or time_steps:
            _print_plan(selected, commands, time_steps)
            return
        options = _parse_pairs("--launcher-option", launcher_options)
        failed = [] if show else _train(selected, jobs, launcher, out, options)

        from kdcache.report.tables import show as print_table
        from kdcache.study.result_files import write_results

        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{definition.name}-{profile}"
        try:
            for table in write_results(definition, cells, path, device):
                print_table(table)
            click.echo(f"tables: {path}.md")
        finally:
            for name in failed:
                click.echo(f"failed: {name}", err=True)
        if failed:
            raise KdcacheError(f"runs that failed: {len(failed)}. The same command tries them again.")


def _train(cells: "list[StudyCell]", jobs: int, launcher: str, out: Path, options: dict[str, str]) -> list[str]:
    from kdcache.study.launch import make_launcher
    from kdcache.study.training_runs import train_unfinished

    return train_unfinished(cells, make_launcher(launcher, jobs, (out / "launcher").absolute(), options), click.echo)


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in names.split(",")] if names else []


def _parse_pairs(option: str, pairs: tuple[str, ...]) -> dict[str, str]:
    """Parse values such as NAME=VALUE."""
    if invalid := [text for text in pairs if "=" not in text]:
        raise UsageError(problem(option, expected="NAME=VALUE", got=invalid[0]))
    return dict(text.split("=", 1) for text in pairs)


def _print_plan(cells: "list[StudyCell]", commands: bool, time_steps: bool) -> None:
    """Print what a study costs: totals, a row for each row of the study and, if asked for, commands and hours."""
    from kdcache.report.tables import file_size, show
    from kdcache.study.cost import study_cost
    from kdcache.study.planned import list_runs
    from kdcache.study.result_tables import study_cost_table

    cost, runs = study_cost(cells), list_runs(cells)
    with_cache = cost.shared.forwards + cost.without_store
    click.echo(f"runs: {len(runs)}, {sum(run.finished for run in runs)} of them finished")
    click.echo(f"teacher forwards without a cache: {cost.uncached:,}")
    click.echo(f"teacher forwards with a cache per teacher: {with_cache:,}")
    if cost.without_store:
        click.echo(f"  by runs that cannot use a cache (features, cache off): {cost.without_store:,}")
    click.echo(f"bytes of these caches: {file_size(cost.shared.stored_bytes)}")
    if cost.limited != cost.shared:
        limited = cost.limited.forwards + cost.without_store
        click.echo(f"within --cache-limit: {limited:,} teacher forwards, {file_size(cost.limited.stored_bytes)}")
    if time_steps:
        from kdcache.study.timing import estimate_hours

        click.echo("timing each network for a second ...", err=True)
        click.echo(f"hours on this machine, one run at a time, with the cache: {estimate_hours(cells):.1f}")
    show(study_cost_table(cells))
    if commands:
        for run in runs:
            run.write_config()
            click.echo(shlex.join(["kdcache", *run.arguments]) + ("  # finished" if run.finished else ""))
