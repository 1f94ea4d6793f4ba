"""``kdcache models``, ``kdcache export`` and ``kdcache predict``."""

import os
from pathlib import Path

import click

from kdcache.choices import IMAGE_SIZES, MODEL_PREFIXES, MODELS
from kdcache.cli import COMMANDS
from kdcache.errors import KdcacheError, UsageError, printable, problem
from kdcache.presets import read_toml

__all__ = ["export", "models", "predict"]

RUN = click.argument("run", type=click.Path(path_type=Path))
PAPER_PROTOCOLS = ("cifar100", "tiny-imagenet", "imagenet")
"""Files of ``configs/protocols`` with the pairs of the paper."""

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}


@click.command("models", help=COMMANDS["models"].about)
@click.option("--num-classes", default=100, show_default=True, type=click.IntRange(1), help="Width of the logits.")
@click.option(
    "--image-size",
    default=32,
    show_default=True,
    type=click.IntRange(*IMAGE_SIZES),
    help="Height and width of the images, in pixels.",
)
def models(num_classes: int, image_size: int) -> None:
    """List the networks."""
    from kdcache.report.tables import TextTable, show

    sizes = MODELS
    if (num_classes, image_size) != (100, 32):
        from kdcache.models.sizes import model_sizes

        sizes = model_sizes(num_classes, image_size)
    rows = [(name, f"{size.parameters:,}", f"{size.multiply_adds / 1e6:.1f}") for name, size in sizes.items()]
    head = ("network", "parameters", "million multiply-adds per image")
    show(TextTable(f"{num_classes} classes, {image_size}x{image_size} pixels", head, rows))
    pairs = [
        (pair["teacher"]["model"], pair["student"]["model"], dataset)
        for dataset in PAPER_PROTOCOLS
        for pair in read_toml(dataset, "protocol", "protocol", "protocols")["pairs"]
    ]
    show(TextTable("Pairs of the paper", ("teacher", "student", "dataset"), pairs))
    click.echo(f"Also {', '.join(prefix + rest for prefix, rest in MODEL_PREFIXES)}.")


BEST = click.option("--best", is_flag=True, help="Use the network of the best epoch instead of the last.")


@click.command("export", help=COMMANDS["export"].about)
@RUN
@click.option(
    "--format", default="safetensors", show_default=True, type=click.Choice(list(SUFFIXES)), help="Format of the file."
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write. [default: in the run folder]")
@BEST
def export(run: Path, format: str, out: Path | None, best: bool) -> None:
    """Export a network."""
    from kdcache.files import require_writable_file
    from kdcache.models import checkpoint
    from kdcache.models.export import export as write
    from kdcache.run.folder import FinishedRun

    folder = FinishedRun(run)
    path = out or folder.path / f"export{SUFFIXES[format]}"
    require_writable_file(path)
    exported = write(checkpoint.load(folder.chosen_network_file(best)), format, path)
    click.echo(printable(f"{exported.path}: probabilities differ by at most {exported.difference:.1g}"))


@click.command("predict", help=COMMANDS["predict"].about)
@RUN
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 2**31),
    help="Pixels above which an image is not decoded. [default: the run's]",
)
@BEST
def predict(run: Path, images: tuple[Path, ...], max_pixels: int | None, best: bool) -> None:
    """Predict classes."""
    import torch

    from kdcache.datasets.pictures import read_image
    from kdcache.models import checkpoint
    from kdcache.models.export import ExportModule
    from kdcache.run.folder import FinishedRun

    folder = FinishedRun(run)
    file = folder.chosen_network_file(best)
    network, metadata = checkpoint.load(file), checkpoint.metadata(file)
    names = metadata.get("class_names") or [str(label) for label in range(network.num_classes)]
    rendering, deployed = network.rendering, ExportModule(network)
    size, shorter_side, interpolation = rendering.image_size, rendering.shorter_side, rendering.interpolation
    files, bad = _image_files(images)
    total = len(files) + bad
    for image in files:
        try:
            limit = max_pixels or folder.config.max_pixels
            pixels = read_image(image, size, shorter_side, interpolation, limit)
        except UsageError as error:
            click.echo(f"kdcache: {error}", err=True)
            bad += 1
            continue
        with torch.inference_mode():
            (probabilities,) = deployed(pixels[None])
        if not probabilities.isfinite().all():  # a network that diverged, or a file with absurd numbers
            what = f"probabilities of {image} by the network {file}"
            raise KdcacheError(problem(what, expected="finite numbers", got=probabilities.tolist()))
        top = probabilities.topk(min(5, len(names)))
        guesses = (
            f"{printable(names[label])} {probability:.3f}"
            for label, probability in zip(top.indices, top.values, strict=True)
        )
        click.echo(f"{printable(image)}: {', '.join(guesses)}")
    if bad:
        raise KdcacheError(problem("images without a prediction", got=f"{bad} of {total}"))


def _image_files(paths: tuple[Path, ...]) -> tuple[list[Path], int]:
    """List files, and the images in folders; say what else lies in these, and count the folders without an image."""
    from kdcache.datasets.listing import pictures_below

    if not any(os.path.exists(path) for path in paths):
        raise UsageError(*(problem(f"image {path} does not exist") for path in paths))
    found: list[Path] = []
    problems: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        try:
            files = pictures_below(path)
        except UsageError as error:
            problems.append(str(error))
            continue
        found += map(files.path, range(len(files)))
        if others := files.describe_others():
            click.echo(f"kdcache: not taken as images in {printable(path)}: {others}", err=True)
        if not len(files):
            problems.append(problem(f"folder {path}", expected="images", got="none"))
    if not found:
        raise UsageError(*problems)
    for line in problems:
        click.echo(f"kdcache: {line}", err=True)
    return found, len(problems)
