"""``kdcache data``: what there is to train on."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.choices import BAD_IMAGES
from kdcache.cli import COMMANDS
from kdcache.errors import KdcacheError, UsageError, problem

if TYPE_CHECKING:
    from kdcache.datasets import Card

__all__ = ["data"]

NAME = click.argument("dataset")
SIZE = click.option("--image-size", type=click.IntRange(32), help="Side to which pictures are brought, in pixels.")
WORKERS = click.option(
    "--workers", type=click.IntRange(0), help="Processes that hash and decode pictures [one for each core]."
)
ROOT = click.option(
    "--data-root",
    default="datasets",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the datasets that have a name.",
)


@click.group("data", help=COMMANDS["data"].about)
def data() -> None:
    """Hold what can be done with a dataset."""


@data.command("list")
@ROOT
def list_(data_root: Path) -> None:
    """List the datasets that are known by name, how their images are trained on, and whether they are there."""
    from kdcache.datasets.cards import CARDS
    from kdcache.report.tables import TextTable, show

    rows = []
    for card in CARDS.values():
        there = not card.folders or any((data_root / folder).is_dir() for folder in card.folders)
        counts = " + ".join(f"{count:,}" for count in card.counts or ())
        rows.append((card.name, str(card.classes or 1000), counts, card.training, "yes" if there else "no"))
    show(TextTable(f"Datasets (data root: {data_root})", ("dataset", "classes", "images", "x", "there"), rows))
    click.echo(
        "and folder:PATH (train/ and val/ with a folder for each class), hdf5:FILE (made by 'kdcache data pack')"
    )


@data.command()
@NAME
@ROOT
@SIZE
def info(dataset: str, data_root: Path, image_size: int | None) -> None:
    """Show what is known of a dataset: its card, and if it is there its images, classes and fingerprints."""
    from kdcache.datasets import CARDS, read
    from kdcache.datasets.check import known
    from kdcache.report.progress import progress_bar

    try:
        found = read(dataset, root=data_root, image_size=image_size)
    except UsageError as error:
        if dataset not in CARDS:
            raise
        _tell_card(CARDS[dataset])
        click.echo(f"not there: {error}")
        return
    _tell_card(found.card)
    with progress_bar("hashing") as tell:
        known(found, tell)
    for part, split in (("training", found.train), ("test", found.test)):
        click.echo(f"{part} images: {len(split):,}")
        click.echo(f"fingerprint: {split.fingerprint}")
    counts = found.train.labels.bincount(minlength=found.num_classes).tolist()
    named = (f"{name} ({count})" for name, count in zip(found.class_names, counts, strict=True))
    click.echo(f"classes, with their training images: {', '.join(named)}")


@data.command()
@NAME
@ROOT
def fetch(dataset: str, data_root: Path) -> None:
    """Download a dataset, if its terms allow it, or say what to do by hand.

    A download that was interrupted goes on where it ended. What is fetched has to have the hash that was published.
    """
    from kdcache.datasets import fetch as fetching
    from kdcache.datasets.cards import CARDS
    from kdcache.report.progress import progress_bar

    if dataset not in CARDS:
        raise UsageError(problem("dataset to fetch", expected=", ".join(fetching.ARCHIVES), got=dataset))
    with progress_bar(f"fetching {dataset}") as tell:
        folder = fetching.fetch(dataset, data_root.expanduser(), lambda file, done, total: tell(done, total))
    click.echo(f"{dataset}: {folder or 'ships with kdcache'} (licence: {CARDS[dataset].licence})")


@data.command()
@NAME
@click.argument("file", type=click.Path(path_type=Path))
@ROOT
@SIZE
@click.option(
    "--on-bad-image",
    default="error",
    show_default=True,
    type=click.Choice(BAD_IMAGES),
    help="What to do about pictures that cannot be read.",
)
@WORKERS
def pack(
    dataset: str, file: Path, data_root: Path, image_size: int | None, on_bad_image: str, workers: int | None
) -> None:
    """Write a dataset into one file, which --dataset hdf5:FILE reads: the same training, bit for bit.

    Images of one size are stored as they are trained on, pictures as they are encoded. The file appears when it is
    whole; if it is interrupted, the same command goes on where it ended.
    """
    from kdcache.datasets import read, without_bad
    from kdcache.datasets.check import known
    from kdcache.datasets.pack import pack as write
    from kdcache.report.progress import progress_bar

    found = read(dataset, root=data_root, image_size=image_size, workers=workers)
    with progress_bar("trying the pictures") as tell:
        bad = known(found, tell, decodes=True)
    if bad and on_bad_image == "error":
        raise KdcacheError("\n".join([*bad, f"{file} is not written; --on-bad-image skip leaves these out"]))
    found = without_bad(found)
    with progress_bar("packing") as tell:
        write(found, file, tell)
    left_out = f", {found.skipped} left out" if found.skipped else ""
    click.echo(f"{file}: {len(found.train):,} training and {len(found.test):,} test images{left_out}")


@data.command()
@NAME
@ROOT
@SIZE
@WORKERS
def check(dataset: str, data_root: Path, image_size: int | None, workers: int | None) -> None:
    """Hash and decode every image again, compare the counts, and name each image that is bad."""
    from kdcache.datasets.check import check as look
    from kdcache.report.progress import progress_bar

    with progress_bar("checking") as tell:
        report = look(dataset, tell, workers, root=data_root, image_size=image_size)
    found = report.data
    if report.problems:
        raise KdcacheError("\n".join([*report.problems, f"{dataset}: {len(report.problems)} problems"]))
    click.echo(f"{dataset}: {len(found.train):,} training and {len(found.test):,} test images, all sound")


def _tell_card(card: "Card") -> None:
    lines = {
        "dataset": card.name,
        "classes": card.classes or "counted when it is read",
        "image size": f"{card.image_size}x{card.image_size}",
        "x": card.training,
        "clean view": card.evaluation,
        "mean": ", ".join(f"{value:.4f}" for value in card.mean),
        "standard deviation": ", ".join(f"{value:.4f}" for value in card.std),
        "source": card.source,
        "licence": card.licence,
    }
    for word, value in lines.items():
        click.echo(f"{word}: {value}")
