"""``kdcache models``, ``kdcache export`` and ``kdcache predict``."""

from pathlib import Path

import click

from kdcache.choices import IMAGE_SIZES
from kdcache.cli import COMMANDS

__all__ = ["export", "models", "predict"]

RUN = click.argument("run", type=click.Path(path_type=Path))
SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}


@click.command("models", help=COMMANDS["models"].about)
@click.option("--num-classes", default=100, show_default=True, type=click.IntRange(1), help="Width of the logits.")
@click.option(
    "--image-size",
    default=32,
    show_default=True,
    type=click.IntRange(*IMAGE_SIZES),
    help="Side of the images, in pixels.",
)
def models(num_classes: int, image_size: int) -> None:
    """List the networks."""
    from kdcache.models.sizes import PAIRS, sizes
    from kdcache.report.tables import TextTable, show

    found = sizes(num_classes, image_size)
    rows = [(size.name, f"{size.parameters:,}", f"{size.multiply_adds / 1e6:.1f}") for size in found]
    head = ("network", "parameters", "million multiply-adds an image")
    show(TextTable(f"{num_classes} classes, {image_size}x{image_size} pixels", head, rows))
    show(TextTable("Pairs of the paper", ("teacher", "student", "dataset"), PAIRS))
    click.echo("and torchvision:NAME, timm:NAME, python:MODULE:CALLABLE")


@click.command("export", help=COMMANDS["export"].about)
@RUN
@click.option(
    "--format", default="safetensors", show_default=True, type=click.Choice(list(SUFFIXES)), help="Of the file."
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write [beside the run's network].")
def export(run: Path, format: str, out: Path | None) -> None:
    """Export a network."""
    from kdcache.models import checkpoint
    from kdcache.models.export import export as write
    from kdcache.run.folder import FinishedRun

    folder = FinishedRun(run)
    made = write(checkpoint.load(folder.network_file), format, out or folder.path / f"export{SUFFIXES[format]}")
    click.echo(f"{made.path}: probabilities within {made.difference:.1g} of the network's")


@click.command("predict", help=COMMANDS["predict"].about)
@RUN
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
def predict(run: Path, images: tuple[Path, ...]) -> None:
    """Predict classes."""
    import torch

    from kdcache.datasets.pictures import read_image
    from kdcache.errors import printable
    from kdcache.models import checkpoint
    from kdcache.models.export import Deployed
    from kdcache.run.folder import FinishedRun

    path = FinishedRun(run).network_file
    network = checkpoint.load(path)
    facts = checkpoint.metadata(path)
    names = facts.get("class_names") or [str(label) for label in range(network.num_classes)]
    sides = network.image_size, facts.get("shorter_side") or network.image_size
    deployed = Deployed(network)
    for image in images:
        with torch.inference_mode():
            (probabilities,) = deployed(read_image(image, *sides)[None])
        top = probabilities.topk(min(5, len(names)))
        guesses = (
            f"{printable(names[label])} {share:.3f}" for label, share in zip(top.indices, top.values, strict=True)
        )
        click.echo(f"{image}: {', '.join(guesses)}")
