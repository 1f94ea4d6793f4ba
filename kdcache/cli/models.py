"""``kdcache models`` and ``kdcache export``."""

from pathlib import Path

import click

from kdcache.choices import IMAGE_SIZES, MODEL_PREFIXES, MODELS
from kdcache.cli import COMMANDS
from kdcache.errors import printable
from kdcache.presets import read_toml

__all__ = ["BEST", "export", "models"]

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
    file = folder.chosen_network_file(best)
    names = checkpoint.metadata(file).get("class_names", ())
    exported = write(checkpoint.load(file), format, path, class_names=names)
    click.echo(printable(f"{exported.path}: probabilities differ by at most {exported.difference:.1g}"))
