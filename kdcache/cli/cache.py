"""``kdcache cache``: the stores of a teacher's logits."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.cli import COMMANDS
from kdcache.cli.options import CACHE_WORDS, DEVICE, UNLABELLED, settings
from kdcache.config import StudentConfig
from kdcache.errors import KdcacheError, UsageError, printable, problem

if TYPE_CHECKING:
    from kdcache.answers.teacher_stores import FoundStores

__all__ = ["cache"]

VIEWS = (
    *StudentConfig.in_group("data"),
    *("teacher", "teacher_best", "aug", "augs", "pick", "candidates"),
    *("batch_size", "steps", "epochs", "seed", "view_seed"),
)
STORE = ("cache", "cache_limit", "store", "store_dtype", "topk", "store_format")

TEACHER_ARGUMENT = click.argument("teacher", required=False, type=click.Path(path_type=Path))
DATASET = click.option("--dataset", help="The store's images, if they were moved [where they were].")
STORE_OPTION = click.option("--store", help="A store: its folder, URL or name, see cache info [all of the teacher's].")


@click.group("cache", help=f"{COMMANDS['cache'].about}\n\n{CACHE_WORDS}")
def cache() -> None:
    """Group of the commands about stores."""


@cache.command()
@settings(StudentConfig, (*VIEWS, "loss", "device", "precision", "threads", *STORE))
def fill(config: StudentConfig) -> None:
    """Precompute the teacher's logits for all views of a student.

    These are the views that student-train with the same options will see. Several of these commands may run at once on
    one machine, also under torchrun: they share the work.
    """
    from kdcache.report.progress import terminal_reporter
    from kdcache.report.time_left import format_duration
    from kdcache.stages import precompute_answers

    with terminal_reporter() as reporter:
        result = precompute_answers(config, reporter)
        stored = f"logits of {result.stored} of {result.total} views are stored"
        spent = format_duration(result.seconds)
        reporter.message(f"{stored}, {result.teacher_forwards} of them computed now, {spent}")
        reporter.message(f"store: {result.store}")


@cache.command("plan")
@settings(StudentConfig, (*VIEWS, "loss", "precision", *STORE, "temperature"))
@click.option("--students", default=1, show_default=True, type=click.IntRange(1), help="Students of one view seed.")
def plan_(config: StudentConfig, students: int) -> None:
    """Count teacher forwards and bytes with each --cache."""
    from kdcache.answers.budget import compare_caches
    from kdcache.answers.encoding import TopK
    from kdcache.config import TeacherConfig
    from kdcache.report.stores import costs_table, encoding_line
    from kdcache.report.tables import show
    from kdcache.run.find import find_teacher_run, stores_of
    from kdcache.run.folder import newest_finished_run
    from kdcache.setup import data_size, make_plan_for_size, seen_by, with_epochs
    from kdcache.stores import possible_encodings, stored_contents

    if config.further_teachers:
        expected, remedy = "one, since each has a store of its own", "Run it for each of them."
        raise UsageError(problem("--teacher", expected=expected, got=len(config.teachers), remedy=remedy))
    if config.answers is not None:
        raise UsageError(problem("cache plan", expected="no --answers, which cost no teacher forwards"))
    if not config.needs_teacher:
        raise UsageError(problem(f"--loss {config.loss}", expected="a loss that reads the teacher's logits"))
    size = data_size(config)
    config = with_epochs(config, size.samples)
    run = find_teacher_run(config.teacher) if config.teacher else newest_finished_run(TeacherConfig, config.dataset)
    config = config.model_copy(update={"teacher": run.path if run else None})
    plan = make_plan_for_size(config, size.samples, seen_by(config.teacher, size.card))

    encoding, other = possible_encodings(config)
    space = stored_contents(config, size, plan, encoding)
    costs = compare_caches(plan, config.epochs, space, config.recomputes_x)
    show(costs_table(costs, students))
    error = None
    if run and isinstance(encoding, TopK):
        from kdcache.answers.verify import encoding_error_on_clean

        error = encoding_error_on_clean(stores_of(run.path).open(), encoding, config.temperature)
    click.echo(encoding_line(encoding, other, size.classes, error, config.temperature))


@cache.command()
@click.argument("place", required=False, metavar="[TEACHER|URL]")
@STORE_OPTION
def info(place: str | None, store: str | None) -> None:
    """List the stores of a teacher, or show what one holds, and what its logits depend on.

    Of a folder or URL that cache push wrote to, show the card.
    """
    from kdcache.answers.card import CARD
    from kdcache.report.stores import store_table, stores_table
    from kdcache.report.tables import show
    from kdcache.run.find import find_stores

    if place is not None and ("://" in place or Path(place, CARD).is_file()):
        show_card(place)
        return
    found = find_stores(None if place is None else Path(place), store)
    if store is None or len(found.stores) > 1:
        show(stores_table(found))
    report_unreadable(found)
    if len(found.stores) > 1:
        click.echo("Name one with --store to see what it holds.")
        return
    for one in found.stores:
        for name, value in {**one.made_with, **one.fingerprint}.items():
            click.echo(printable(f"{name}: {value}"))
        show(store_table(one))


def show_card(place: str) -> None:
    """Print what a card says, without the list of files."""
    from kdcache.answers.card import read_card
    from kdcache.report.tables import file_size

    card = read_card(place, named_by="URL")
    for name, value in card.facts.items():
        lines = {f"{name}: {key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        for line, one in lines.items():
            click.echo(printable(f"{line}: {'; '.join(one) if name == 'views' else one}"))
    click.echo(f"{len(card.files)} files, {file_size(card.size)}")


@cache.command()
@click.argument("teacher", type=click.Path(path_type=Path))
@click.argument("url")
@click.option("--store", help="The store to copy: its name, see cache info, or place [the only one].")
@click.option("--license", default="not stated", show_default=True, help="License of the logits, for the card.")
def push(teacher: Path, url: str, store: str | None, license: str) -> None:
    """Copy a teacher's logits to a folder or URL, for students without the teacher.

    TEACHER is its run folder. URL is a folder, or s3://BUCKET/PATH and the like. What is incomplete is left out. A card
    (card.json) says what the logits are for, and holds the checksum of every file; it is written last. After an
    interruption, run the command again: what is in place is kept.
    """
    from kdcache.report.progress import progress_bar
    from kdcache.report.tables import file_size
    from kdcache.run.answers import find_store, push_answers
    from kdcache.run.find import find_teacher_run

    run = find_teacher_run(teacher)
    with progress_bar("pushing", "bytes") as progress:
        card = push_answers(run, find_store(teacher, store), url, license, progress)
    click.echo(printable(f"{'; '.join(card.views)}: {card.rows} rows, {file_size(card.size)}"))
    click.echo(printable(f"answers: {url}"))


@cache.command()
@click.argument("url")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A folder, or the run folder of this very teacher, whose store they become [a new folder in answers/].",
)
def pull(url: str, out: Path | None) -> None:
    """Copy logits that cache push wrote, from a folder or URL (https://..., s3://...).

    Every file is checked before it is written. After an interruption, run the command again: what is in place is kept.
    """
    from kdcache.report.progress import progress_bar
    from kdcache.report.tables import file_size
    from kdcache.run.answers import pull_answers

    with progress_bar("pulling", "bytes") as progress:
        card, folder = pull_answers(url, out, progress)
    click.echo(printable(f"{'; '.join(card.views)}: {card.rows} rows, {file_size(card.size)}"))
    click.echo(printable(f"answers: {folder}"))


def report_unreadable(found: "FoundStores") -> None:
    """Name the stores that cannot be read, and why."""
    for one in found.unreadable:
        click.echo(problem(f"unreadable: {one.folder}", got=one.reason, remedy="To delete it, delete its folder."))


@cache.command()
@TEACHER_ARGUMENT
@STORE_OPTION
@click.option("--samples", default=1000, show_default=True, type=click.IntRange(1), help="Views to compare.")
@click.option("--all", "everything", is_flag=True, help="Compare all views.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random sample.")
@click.option(
    "--tolerance",
    default=0.25,
    show_default=True,
    type=click.FloatRange(0),
    help="Largest difference of a logit or a stored vector.",
)
@DATASET
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of downloaded datasets [the store's].")
@UNLABELLED
@DEVICE
def verify(
    teacher: Path | None,
    store: str | None,
    samples: int,
    everything: bool,
    seed: int,
    tolerance: float,
    dataset: str | None,
    data_root: Path | None,
    unlabelled: str | None,
    device: str,
) -> None:
    """Check every chunk of a teacher's stores, and compare logits or vectors with the teacher's.

    Exits with 1 if a store or a chunk is damaged, a logit or vector differs by more than the tolerance, or the images
    of one of several stores are not there.
    """
    from kdcache.report.stores import checks_table
    from kdcache.report.tables import show
    from kdcache.run.find import find_stores, find_teacher_run
    from kdcache.stores import verify_store

    run, (stores, unreadable), checks = find_teacher_run(teacher), find_stores(teacher, store), []
    problems = [one.reason for one in unreadable]
    moved = [name for name, place in {"--dataset": dataset, "--unlabelled": unlabelled}.items() if place is not None]
    if moved and len(stores) > 1:
        expected = "one store that is named with --store"
        raise UsageError(
            problem(f"cache verify {' '.join(moved)}", expected=expected, got=f"the {len(stores)} of {run.path}")
        )
    for one in stores:
        try:
            places = dataset, data_root, unlabelled
            found = list(verify_store(run, one, None if everything else samples, seed, device, *places))
        except KdcacheError as error:
            if len(stores) + len(unreadable) == 1:
                raise
            problems.append(str(error))
            continue
        show(checks_table(one.location.where, found))
        checks += found
    damaged = sum(check.damaged for check in checks)
    max_error = max((check.max_error for check in checks), default=0.0)
    if damaged or max_error > tolerance:
        remedy = "Damaged chunks are computed again by student-train and cache fill."
        if not damaged:
            remedy = "If the code of an augmentation has changed, delete its logits with cache prune --kind."
        problems.append(
            problem(
                "the store does not match the teacher",
                expected=f"no damaged chunks and differences up to {tolerance:g}",
                got=f"{damaged} damaged and {max_error:.3g}",
                remedy=remedy,
            )
        )
    if problems:
        raise KdcacheError("\n".join(problems))
    compared, changes = (sum(getattr(check, name) for check in checks) for name in ("compared", "argmax_changes"))
    click.echo(f"intact: {compared} views compared, max error {max_error:.3g}, {changes} with another top class")


@cache.command()
@TEACHER_ARGUMENT
@STORE_OPTION
@click.option("--view-seed", type=click.IntRange(0), help="Delete the views of this view seed only.")
@click.option("--kind", help="Delete one kind of view only: standard, cutmix-1, mixup-1, ...")
@click.option("--after-epoch", type=click.IntRange(0), help="Keep this many epochs, and delete later ones.")
@click.option("--all", "everything", is_flag=True, help="Delete all views but the clean ones.")
def prune(
    teacher: Path | None,
    store: str | None,
    view_seed: int | None,
    kind: str | None,
    after_epoch: int | None,
    everything: bool,
) -> None:
    """Delete logits by view seed, kind of view or epoch, in all stores of a teacher or in one.

    Those of clean views are kept.
    """
    from kdcache.report.tables import file_size
    from kdcache.run.find import find_stores

    if everything == any(choice is not None for choice in (view_seed, kind, after_epoch)):
        expected = "--all, or some of --view-seed, --kind and --after-epoch"
        raise UsageError(problem("cache prune", expected=expected, got="both" if everything else "neither"))
    found = find_stores(teacher, store)
    for one in found.stores:
        paths = [
            name.path
            for name in one.replay_tables(kind)
            if view_seed in (None, name.seed) and (after_epoch is None or name.epoch >= after_epoch)
        ]
        one.drop(paths)
        where, size = one.location.where, file_size(one.location.size())
        click.echo(printable(f"deleted {len(paths)} tables of logits; the store {where} now takes {size}"))
    report_unreadable(found)
