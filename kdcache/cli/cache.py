"""``kdcache cache``: the store of a teacher's answers."""

from pathlib import Path

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import DEVICE, settings
from kdcache.config import StudentConfig
from kdcache.errors import KdcacheError, UsageError, printable, problem

__all__ = ["cache"]

VIEWS = ("dataset", "data_root", "image_size", "teacher", "aug", "pick", "candidates", "epochs", "seed", "view_seed")
STORE = ("cache", "cache_limit", "store", "store_dtype", "topk")

TEACHER = click.argument("teacher", required=False, type=click.Path(path_type=Path))
WHERE = click.option("--store", help="Folder or URL of the store [answers.zarr in the teacher's run folder].")


@click.group("cache", help=COMMANDS["cache"].about)
def cache() -> None:
    """Hold what can be done with a store."""


@cache.command()
@settings(StudentConfig, (*VIEWS, "device", "precision", *STORE))
def fill(config: StudentConfig) -> None:
    """Ask ahead, without a student, all that student-train with the same options would ask.

    Several of these may run at once on one machine, also under torchrun: they share the work.
    """
    from kdcache.report.progress import terminal_reporter
    from kdcache.stages import fill_answers

    with terminal_reporter() as reporter:
        filled = fill_answers(config, reporter)
        there = f"{filled.answers} of {filled.of} answers are there"
        reporter.message(f"{there}, {filled.asked} of them asked now, {filled.seconds:.0f} s")
        reporter.message(f"store: {filled.store}")


@cache.command()
@settings(StudentConfig, (*VIEWS, *STORE, "temperature"))
@click.option("--students", default=1, show_default=True, type=click.IntRange(1), help="That share the view seed.")
def plan(config: StudentConfig, students: int) -> None:
    """Count, before anything runs, what students ask the teacher under each --cache, and the bytes of the store."""
    from kdcache.analysis.questions import study_costs
    from kdcache.report.stores import costs_table, format_line
    from kdcache.report.tables import show

    found = study_costs(config)
    show(costs_table(found, students))
    click.echo(format_line(found, config.temperature))


@cache.command()
@TEACHER
@WHERE
def info(teacher: Path | None, store: str | None) -> None:
    """Show what a store holds, whose answers these are, how full and how large it is."""
    from kdcache.answers.store import AnswerStore
    from kdcache.report.stores import store_table
    from kdcache.report.tables import show
    from kdcache.setup import find_store

    found = AnswerStore(find_store(teacher, store))
    for word, value in {**found.made_with, **found.fingerprint}.items():
        click.echo(printable(f"{word}: {value}"))
    show(store_table(found))


@cache.command()
@TEACHER
@WHERE
@click.option("--samples", default=1000, show_default=True, type=click.IntRange(1), help="Answers to ask again.")
@click.option("--all", "everything", is_flag=True, help="Ask all of them again.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the choice.")
@click.option(
    "--tolerance", default=0.25, show_default=True, type=click.FloatRange(0), help="Largest difference of a logit."
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of downloaded datasets [the teacher's].")
@DEVICE
def verify(
    teacher: Path | None,
    store: str | None,
    samples: int,
    everything: bool,
    seed: int,
    tolerance: float,
    data_root: Path | None,
    device: str,
) -> None:
    """Check every chunk of a store, and ask the teacher again about a random sample of its answers.

    Exits with 1 where a chunk is damaged, or an answer is further off than the tolerance.
    """
    from kdcache.analysis.verification import verify_run
    from kdcache.report.stores import checks_table
    from kdcache.report.tables import show
    from kdcache.setup import find_teacher_run

    run = find_teacher_run(teacher)
    checks = list(verify_run(run, store, None if everything else samples, seed, device, data_root))
    show(checks_table(checks))
    damaged = sum(check.damaged for check in checks)
    largest = max((check.largest for check in checks), default=0.0)
    if damaged or largest > tolerance:
        raise KdcacheError(
            problem(
                "the store does not hold what the teacher says",
                expected=f"no damaged chunk and a difference of {tolerance:g}",
                got=f"{damaged} damaged and {largest:.3g}",
            )
        )
    compared, flips = (sum(getattr(check, name) for check in checks) for name in ("compared", "flips"))
    click.echo(f"sound: {compared} answers asked again, largest difference {largest:.3g}, {flips} with another class")


@cache.command()
@TEACHER
@WHERE
@click.option("--view-seed", type=click.IntRange(0), help="Drop the answers of this view seed alone.")
@click.option("--kind", help="Drop one kind of views alone: standard, cutmix-1, mixup-1, ...")
@click.option("--after-epoch", type=click.IntRange(0), help="Keep so many epochs, and drop those after them.")
@click.option("--all", "everything", is_flag=True, help="Drop the answers of every view seed, epoch and kind.")
def prune(
    teacher: Path | None,
    store: str | None,
    view_seed: int | None,
    kind: str | None,
    after_epoch: int | None,
    everything: bool,
) -> None:
    """Drop answers to the views of some plans or epochs; those to the clean views stay."""
    from kdcache.answers.store import AnswerStore
    from kdcache.report.tables import file_size
    from kdcache.setup import find_store

    if everything == any(choice is not None for choice in (view_seed, kind, after_epoch)):
        raise UsageError(problem("what to drop", expected="--all, or some of --view-seed, --kind and --after-epoch"))
    found = AnswerStore(find_store(teacher, store))
    dropped = [
        name.table
        for name in found.replayed(kind)
        if view_seed in (None, name.seed) and (after_epoch is None or name.epoch >= after_epoch)
    ]
    found.drop(dropped)
    click.echo(f"dropped {len(dropped)} tables; {file_size(found.place.size())} are left in {found.place.where}")
