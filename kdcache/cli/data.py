"""``kdcache data``: the datasets."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcache.choices import BAD_IMAGES, MAX_PIXELS
from kdcache.cli import COMMANDS
from kdcache.errors import KdcacheError, UsageError, printable, problem
from kdcache.files import expanded

if TYPE_CHECKING:
    from kdcache.cards import Card
    from kdcache.datasets import Dataset

__all__ = ["data"]

MEGABYTE = 10**6

NAME = click.argument("dataset")
SIZE = click.option("--image-size", type=click.IntRange(32), help="Resize images to this height and width, in pixels.")
WORKERS = click.option(
    "--workers", type=click.IntRange(0), help="Processes that hash and decode images. [default: one per core]"
)
MAX = click.option(
    "--max-pixels",
    default=MAX_PIXELS,
    show_default=True,
    type=click.IntRange(1, 2**31),
    help="Pixels above which an image is not decoded.",
)
ROOT = click.option(
    "--data-root",
    default="datasets",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the downloaded datasets.",
)


@click.group("data", help=COMMANDS["data"].about)
def data() -> None:
    """Group the commands on datasets."""


@data.command("list")
@ROOT
def list_(data_root: Path) -> None:
    """List the datasets that have a name, their view x, and whether they are there."""
    from kdcache.cards import CARDS
    from kdcache.report.tables import TextTable, show

    rows = []
    for card in CARDS.values():
        present = not card.folders or any((data_root / folder).is_dir() for folder in card.folders)
        counts = " + ".join(f"{count:,}" for count in card.counts or ())
        rows.append((card.name, str(card.classes or 1000), counts, card.training, "yes" if present else "no"))
    show(TextTable(f"Datasets (data root: {data_root})", ("dataset", "classes", "images", "x", "present"), rows))
    click.echo(
        "Also folder:PATH (train/ and val/ with a folder for each class, or such folders alone), hdf5:FILE (from "
        "'kdcache data pack'), hf:NAME (a dataset of the Hugging Face Hub, or a folder of its Parquet files), "
        "torchvision:NAME, and python:MODULE:CALLABLE (docs/custom.md)."
    )


@data.command()
@NAME
@ROOT
@SIZE
@MAX
def info(dataset: str, data_root: Path, image_size: int | None, max_pixels: int) -> None:
    """Show the facts of a dataset, and if it is present, its images, classes and fingerprints."""
    from kdcache.datasets import CARDS, read
    from kdcache.datasets.check import hash_images
    from kdcache.report.progress import progress_bar

    try:
        found = read(dataset, root=data_root, image_size=image_size, max_pixels=max_pixels)
    except UsageError as error:
        if dataset not in CARDS:
            raise
        _print_card(CARDS[dataset])
        click.echo(f"not present: {error}")
        return
    _print_card(found.card)
    unreadable = None
    try:
        with progress_bar("hashing") as progress:
            hash_images(found, progress)
    except UsageError as error:
        unreadable = error
    for part, split in (("training", found.train), ("test", found.test)):
        click.echo(f"{part} images: {len(split):,}")
        click.echo(f"fingerprint: {f'none, {unreadable}' if unreadable else split.fingerprint}")
    _print_kinds(found)
    counts = found.train.labels.bincount(minlength=found.num_classes).tolist()
    named = (f"{printable(name)} ({count})" for name, count in zip(found.class_names, counts, strict=True))
    click.echo(f"classes (training images): {', '.join(named)}")


@data.command()
@NAME
@ROOT
def fetch(dataset: str, data_root: Path) -> None:
    """Download a dataset, or explain how to get it if its license does not allow that.

    An interrupted download is resumed. The hash of each file is verified.
    """
    from kdcache.cards import CARDS, canonical
    from kdcache.choices import HF_PREFIX, TORCHVISION_PREFIX
    from kdcache.datasets.check import require_readable
    from kdcache.datasets.fetch import ARCHIVES
    from kdcache.datasets.fetch import fetch as download
    from kdcache.report.progress import progress_bar

    dataset = canonical(dataset)
    if dataset not in CARDS and not dataset.startswith((HF_PREFIX, TORCHVISION_PREFIX)):
        expected = f"one of {', '.join((*ARCHIVES, HF_PREFIX + 'NAME', TORCHVISION_PREFIX + 'NAME'))}"
        raise UsageError(problem("dataset to download", expected=expected, got=dataset))
    with progress_bar(f"downloading {dataset}", "MB") as progress:
        folder = download(
            dataset, expanded(data_root), lambda file, done, total: progress(done // MEGABYTE, total // MEGABYTE)
        )
    require_readable(dataset, expanded(data_root))
    license = CARDS[dataset].license if dataset in CARDS else "that of the dataset"
    click.echo(printable(f"{dataset}: {folder or 'ships with kdcache'} (license: {license})"))


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
    help="What to do about image files that cannot be decoded.",
)
@MAX
@WORKERS
def pack(
    dataset: str,
    file: Path,
    data_root: Path,
    image_size: int | None,
    on_bad_image: str,
    max_pixels: int,
    workers: int | None,
) -> None:
    """Pack a dataset into one file for --dataset hdf5:FILE. Training on it gives the same bits.

    Image files are stored as they are, other images as arrays. The file appears when it is complete. After an
    interruption, the same command resumes.
    """
    from kdcache.datasets import read, without_bad_images
    from kdcache.datasets.check import hash_images
    from kdcache.datasets.pack import check_target
    from kdcache.datasets.pack import pack as write
    from kdcache.report.progress import progress_bar

    check_target(file)
    found = read(dataset, root=data_root, image_size=image_size, workers=workers, max_pixels=max_pixels)
    with progress_bar("decoding") as progress:
        bad = hash_images(found, progress, decode_all=True)
    if bad and on_bad_image == "error":
        remedy = "Leave these images out with --on-bad-image skip."
        raise KdcacheError("\n".join([*bad, problem(f"{file} is not written", remedy=remedy)]))
    found = without_bad_images(found)
    with progress_bar("packing") as progress:
        write(found, file, progress)
    left_out = f", {found.skipped} left out" if found.skipped else ""
    click.echo(printable(f"{file}: {len(found.train):,} training and {len(found.test):,} test images{left_out}"))


@data.command()
@NAME
@ROOT
@SIZE
@MAX
@WORKERS
def check(dataset: str, data_root: Path, image_size: int | None, max_pixels: int, workers: int | None) -> None:
    """Hash and decode every image again, compare the counts, and list every bad image."""
    from kdcache.datasets.check import check as check_dataset
    from kdcache.report.progress import progress_bar

    with progress_bar("checking") as progress:
        report = check_dataset(dataset, progress, workers, root=data_root, image_size=image_size, max_pixels=max_pixels)
    found = report.data
    _print_kinds(found)
    if count := len(report.problems):
        remedy = "Delete the pictures that cannot be decoded, or train without them by --on-bad-image skip."
        found_problems = "1 problem" if count == 1 else f"{count} problems"
        total = problem(f"{dataset}: {found_problems}", remedy=remedy if report.bad else None)
        raise KdcacheError("\n".join([*report.problems, total]))
    click.echo(printable(f"{dataset}: {len(found.train):,} training and {len(found.test):,} test images, no problems"))


def _print_kinds(found: "Dataset") -> None:
    """Print the kinds of image files, if there are several, and what lies beside them and is not taken as one."""
    from kdcache.datasets.sources import Files, describe_kinds

    splits = (found.train, found.test)
    for place, source in {
        split.pictures.source.place: split.pictures.source for split in splits if split.pictures
    }.items():
        if isinstance(source, Files) and len(kinds := source.kinds()) > 1:
            click.echo(f"image files in {printable(place)}: {describe_kinds(kinds)}")
        if others := source.describe_others():
            click.echo(f"not taken as images in {printable(place)}: {others}")


def _print_card(card: "Card") -> None:
    lines = {
        "dataset": card.name,
        "classes": card.classes or "known after reading",
        "image size": f"{card.image_size}x{card.image_size}",
        "x": card.training,
        "clean view": card.rendering.evaluation,
        "mean": ", ".join(f"{value:.4f}" for value in card.mean),
        "standard deviation": ", ".join(f"{value:.4f}" for value in card.std),
        "source": card.source,
        "license": card.license,
    }
    for name, value in lines.items():
        click.echo(printable(f"{name}: {value}"))
