"""Writing a bundle, and measuring what the networks in it can do."""

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from kdcache.analysis.cost import BATCH_SIZES, Timing, measure_speed
from kdcache.bundle.quantize import quantize, training_views
from kdcache.bundle.readme import readme
from kdcache.datasets import Dataset, Split
from kdcache.datasets.pictures import Pictures
from kdcache.datasets.sources import Files
from kdcache.datasets.workers import prefetch_map
from kdcache.files import require_replaceable, write_folder_atomically
from kdcache.models import Network
from kdcache.models.export import export, images_to_compare
from kdcache.models.predictor import Predictor, load_predictor
from kdcache.views import ViewPlan

__all__ = ["Measured", "require_bundle_folder", "write_bundle"]

NETWORKS = {"float32": "model.onnx", "int8": "model-int8.onnx"}
"""File of the network in each precision."""

LABELS, SCRIPT, PICTURE, EXPECTED, README = "labels.txt", "predict.py", "test.png", "expected.json", "README.md"

BATCH_SIZE = 32

PICTURE_SIDES = 2
"""A test picture that is larger than this many times what it is resized to is stored smaller."""

CONTENT = frozenset({*NETWORKS.values(), LABELS, SCRIPT, PICTURE, EXPECTED, README})


class Measured(NamedTuple):
    """What a network of a bundle can do.

    Attributes
    ----------
    precision, file : str
    top1 : float
        Accuracy on all test images, in percent.
    images, bytes : int
        Number of test images, and size of the file.
    timings : tuple of Timing
        Milliseconds an image for each of `BATCH_SIZES`.
    """

    precision: str
    file: str
    top1: float
    images: int
    bytes: int
    timings: tuple[Timing, ...]


def require_bundle_folder(folder: Path) -> None:
    """Check before the work that a bundle can be written to a folder, see `kdcache.files.require_replaceable`."""
    require_replaceable(folder, CONTENT, "a bundle")


def write_bundle(
    plan: ViewPlan,
    network: Network,
    data: Dataset,
    folder: Path,
    class_names: Sequence[str],
    progress: Callable[[int, int], None],
) -> list[Measured]:
    """Write a folder with a network in float32 and int8, labels, a script, a test picture and its expected answer.

    Parameters
    ----------
    plan : ViewPlan
        Of the training.
    network : Network
        The one to write.
    data : Dataset
        The images of the run: int8 is calibrated on training views, and both are measured on the test images.
    folder : Path
        A bundle there is replaced.
    class_names : sequence of str
        Empty if they are not known.
    progress : callable
        Called with the number of finished test images and of all.

    Raises
    ------
    UsageError
        If a package is not installed.
    KdcacheError
        If the network cannot be exported, or the file in float32 gives other probabilities.
    """
    measured: list[Measured] = []

    def write(temporary: Path) -> None:
        temporary.mkdir()
        source, target = (temporary / name for name in NETWORKS.values())
        export(network, "onnx", source, images_to_compare(data.test), class_names, "test images")
        quantize(source, training_views(plan, data), target)
        predictors = {precision: load_predictor(temporary / name) for precision, name in NETWORKS.items()}
        correct = _correct(predictors, data.test, progress)
        for (precision, predictor), right in zip(predictors.items(), correct, strict=True):
            top1 = 100 * right.double().mean().item()
            timings = _measure_speed(predictor)
            size = predictor.path.stat().st_size
            measured.append(Measured(precision, predictor.path.name, top1, len(right), size, timings))
        names = predictors["float32"].class_names
        (temporary / LABELS).write_text("".join(f"{name}\n" for name in names), "utf-8")
        (temporary / SCRIPT).write_bytes(files("kdcache.bundle").joinpath("predict.py").read_bytes())
        sample = int(correct.all(0).int().argmax())  # the first that all predict correctly, or the first
        _write_picture(data.test, sample, predictors, temporary)
        (temporary / README).write_text(readme(network, measured), "utf-8")

    write_folder_atomically(folder.resolve(), write)  # "." has no name
    return measured


def _correct(predictors: dict[str, Predictor], split: Split, progress: Callable[[int, int], None]) -> Tensor:
    """Tell which images of a split each network classifies correctly: bool (P, N)."""
    batches = torch.arange(len(split)).split(BATCH_SIZE)
    found = torch.empty(len(predictors), len(split), dtype=torch.bool)
    for samples, images in zip(batches, prefetch_map(split.take, batches, split.workers), strict=True):
        for row, predictor in enumerate(predictors.values()):
            found[row, samples] = predictor.probabilities(images.contiguous()).argmax(1) == split.labels[samples]
        progress(int(samples[-1]) + 1, len(split))
    return found


def _measure_speed(predictor: Predictor) -> tuple[Timing, ...]:
    size = predictor.facts.image_size
    images = torch.randint(0, 256, (max(BATCH_SIZES), 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    return tuple(measure_speed(predictor.probabilities, images[:batch_size]) for batch_size in BATCH_SIZES)


def _write_picture(split: Split, sample: int, predictors: dict[str, Predictor], folder: Path) -> None:
    """Write a test picture, and the answer of each network."""
    rendering = predictors["float32"].facts.rendering
    _test_picture(split, sample, PICTURE_SIDES * rendering.shorter_side).save(folder / PICTURE)
    pictures = Pictures(Files.of(folder, [PICTURE.encode()]), rendering)
    pixels = pictures.clean(torch.zeros(1, dtype=torch.long))
    answers = {}
    for predictor in predictors.values():
        probability, label = predictor.probabilities(pixels)[0].max(0)
        name = predictor.class_names[int(label)]
        answers[predictor.path.name] = {"class": name, "probability": probability.item()}
    document = {"picture": PICTURE, "class": predictor.class_names[int(split.labels[sample])], "answers": answers}
    (folder / EXPECTED).write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _test_picture(split: Split, sample: int, max_side: int) -> Image.Image:
    if split.pictures is None:
        return Image.fromarray(split.take(torch.tensor([sample]))[0].permute(1, 2, 0).numpy())
    rgb = split.pictures.decode(split.pictures.index_in_source(sample))
    scale = min(1.0, max_side / min(rgb.size))
    return rgb if scale == 1 else rgb.resize((round(scale * rgb.width), round(scale * rgb.height)))
