"""``kdcache models`` and ``kdcache export``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.choices import EXPORT_FORMATS, IMAGE_SIZES, MODEL_PREFIXES, MODELS
from kdcache.cli import COMMANDS
from kdcache.cli.options import UNLABELLED
from kdcache.errors import UsageError, first_line, printable, problem
from kdcache.presets import read_toml

if TYPE_CHECKING:
    from kdcache.run.folder import FinishedRun

__all__ = ["BEST", "export", "models"]

PAPER_PROTOCOLS = ("cifar100", "tiny-imagenet", "imagenet")
"""Files of ``configs/protocols`` with the pairs of the paper."""

BUNDLE = "bundle"


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
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    type=click.Choice([*EXPORT_FORMATS, BUNDLE]),
    help="Format of the file; openvino is a folder with two files, a bundle one with a network in two precisions, "
    "labels and a script. "
    "[default: by the suffix of --out, a bundle if it has none; safetensors without --out]",
)
@click.option("--out", help="File or folder to write. [default: in the run folder]")
@click.option("--dataset", help="Where the run's images are, if they were moved.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of downloaded datasets [the run's].")
@UNLABELLED
@BEST
def export(
    run: Path,
    format: str | None,
    out: str | None,
    dataset: str | None,
    data_root: Path | None,
    unlabelled: str | None,
    best: bool,
) -> None:
    """Export a network."""
    from kdcache.files import require_replaceable, require_writable_file
    from kdcache.models import checkpoint
    from kdcache.models.export import export as write
    from kdcache.models.export import images_to_compare, input_of, random_images
    from kdcache.models.export_formats import OPENVINO_FILES
    from kdcache.run.folder import FinishedRun
    from kdcache.run_data import load_run_data

    if out == "":
        raise UsageError(problem("--out", expected="the path of a file or folder", got="an empty one"))
    folder = FinishedRun(run)
    format = format or _format_of(out)
    suffix = EXPORT_FORMATS[format].suffix if format != BUNDLE else ""
    path = Path(out) if out else folder.path / (f"export{suffix}" if suffix else format)
    file = folder.chosen_network_file(best)
    names = checkpoint.metadata(file).get("class_names", ())
    places: dict[str, Any] = {"dataset": dataset, "data_root": data_root, "unlabelled": unlabelled}
    if format == BUNDLE:
        _export_bundle(folder, file, path, places, names)
        return
    if suffix:
        if out is not None and out.endswith("/"):
            raise UsageError(problem(f"--out for {format}", expected="the path of a file", got=out))
        require_writable_file(path)
    else:
        require_replaceable(path, OPENVINO_FILES, f"a network of {format}")
    network = checkpoint.load(file)
    try:
        images, kind = images_to_compare(load_run_data(folder, split="test", **places).test), "test images"
    except UsageError as error:
        if any(place is not None for place in places.values()):
            raise
        click.echo(f"kdcache: compared on random images, because of this: {error}", err=True)
        images, kind = random_images(network), "random images"
    exported = write(network, format, path, images, names, kind)
    compared = f"its probabilities of {len(images)} {kind} differ from the run's by at most {exported.difference:.1g}"
    click.echo(printable(f"{exported.path}: {format}, input {input_of(network)}; {compared}"))


def _format_of(out: str | None) -> str:
    """Find the format of an export by the name of its file or folder."""
    suffixes = {row.suffix: name for name, row in EXPORT_FORMATS.items() if row.suffix}
    if out is None:
        return "safetensors"
    suffix = "" if out.endswith("/") else Path(out).suffix
    if suffix and suffix not in suffixes:
        expected = f"a folder, or a file that ends with one of {', '.join(suffixes)}"
        raise UsageError(problem("--out", expected=expected, got=out, remedy="Name its --format."))
    return suffixes.get(suffix, BUNDLE)


def _export_bundle(run: "FinishedRun", file: Path, path: Path, places: dict[str, Any], names: Sequence[str]) -> None:
    try:
        from kdcache.bundle.quantize import calibration_images, calibration_plan
        from kdcache.bundle.readme import difference
        from kdcache.bundle.write import require_bundle_folder, write_bundle
    except ImportError as error:
        remedy = "Run pip install 'kdcache[onnx]'."
        raise UsageError(problem(f"--format {BUNDLE}", got=first_line(error), remedy=remedy)) from error
    from kdcache.models import checkpoint
    from kdcache.report.progress import progress_bar
    from kdcache.report.tables import file_size

    require_bundle_folder(path)
    data, left_out = calibration_images(run, **places)
    plan, note = calibration_plan(run.config, data)
    for line in filter(None, (left_out, note)):
        click.echo(f"kdcache: {line}", err=True)
    with progress_bar("measuring") as progress:
        measured = write_bundle(plan, checkpoint.load(file), data, path, names, progress)
    for each in measured:
        accuracy = f"top-1 {each.top1:.2f} % on {each.images:,} test images"
        speed = f"{each.timings[0].median:.2f} ms an image"
        click.echo(printable(f"{path / each.file}: {accuracy}, {file_size(each.bytes)}, {speed}"))
    click.echo(difference(measured))
