"""Export of a network for deployment: pixels in, probabilities out, in a file that needs no kdcache."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache import __version__
from kdcache.choices import EXPORT_FORMATS
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.extensions import import_object
from kdcache.files import write_atomically, write_folder_atomically
from kdcache.models.export_formats import Save
from kdcache.models.network import Network

__all__ = ["Exported", "export", "images_to_compare", "input_of", "random_images"]

CHECKED_IMAGES = 64
"""Number of images on which the exported file is compared with the network."""

TOLERANCE = 1e-3
"""Largest difference of a probability; other runtimes round differently."""

Build = Callable[[Network, Tensor], Save]
"""Converts a network, which is shown images."""

Run = Callable[[Path, Tensor], Tensor]
"""Computes probabilities by a file."""


class Exported(NamedTuple):
    """A file or folder that was written and checked.

    Attributes
    ----------
    path : Path
    difference : float
        Largest difference of a probability from the network's.
    """

    path: Path
    difference: float


def images_to_compare(split: Split) -> Tensor:
    """Choose images of a split, over its whole length, on which an exported file is compared with its network."""
    return split.take(torch.linspace(0, len(split) - 1, min(CHECKED_IMAGES, len(split))).long()).contiguous()


def random_images(network: Network) -> Tensor:
    """Make random images of the size of a network, where there are no others: uint8 (B, 3, S, S)."""
    shape = (CHECKED_IMAGES, 3, network.image_size, network.image_size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()


def input_of(network: Network) -> str:
    """Describe what an exported network takes."""
    size = network.image_size
    return f"images, uint8 (batch, 3, {size}, {size}), RGB, 0 to 255, a batch of any size"


def export(
    network: Network, format: str, path: Path, images: Tensor, class_names: Sequence[str] = (), kind: str = "images"
) -> Exported:
    """Export a network, run the file on some images, and compare the probabilities.

    Parameters
    ----------
    network : Network
    format : str
        A key of `kdcache.choices.EXPORT_FORMATS`.
    path : Path
        File or folder to create or replace.
    images : Tensor of uint8, shape (B, 3, S, S)
    class_names : sequence of str
        Empty if they are not known.
    kind : str
        What the images are. The file states this, their number and the largest difference.

    Raises
    ------
    UsageError
        If a package that the format needs is not installed, or the network is an ONNX file itself.
    KdcacheError
        If the network cannot be exported, or the file gives other probabilities. No file is written then.
    """
    if not network.is_native:
        raise UsageError(problem("network to export", expected="one of torch", got=network.name))
    network, row = network.cpu().eval(), EXPORT_FORMATS[format]
    build: Build = import_object(row.build)
    run: Run = import_object(row.run)
    with torch.inference_mode():
        expected = network(images).float().softmax(1)
    difference = torch.nan

    def write_and_check(temporary: Path) -> None:
        nonlocal difference
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the exporters' internals
                save, facts = build(network, images), _facts(network, class_names)
                save(temporary, facts)
                difference = (run(temporary, images) - expected).abs().max().item()
                verification = {"images": len(images), "of": kind, "largest_difference": difference}
                save(temporary, {**facts, "verification": verification})
        except ImportError as error:
            remedy = f"Run pip install 'kdcache[{row.extra}]'." if row.extra else None
            raise UsageError(problem(f"--format {format}", got=first_line(error), remedy=remedy)) from error
        except Exception as error:  # exporters fail in many ways at networks they cannot trace
            what = f"could not export {network.name} as {format}"
            raise KdcacheError(problem(what, got=first_line(error))) from error
        if not difference <= TOLERANCE:
            what = f"exported probabilities differ from those of {network.name}, so {path} is not written"
            expected_difference = f"a largest difference of at most {TOLERANCE}"
            raise KdcacheError(problem(what, expected=expected_difference, got=difference))

    if row.suffix:
        write_atomically(path, write_and_check)
    else:
        write_folder_atomically(path.resolve(), write_and_check)  # "." has no name
    return Exported(path, difference)


def _facts(network: Network, class_names: Sequence[str]) -> dict[str, Any]:
    """Describe a network by values of JSON, as in a checkpoint."""
    return {
        **{key: getattr(network, key) for key in ("name", "num_classes", "mean", "std")},
        **asdict(network.rendering),
        "class_names": list(class_names),
        "preprocessing": f"turned as EXIF says, RGB, {network.rendering.evaluation}",
        "input": input_of(network),
        "output": f"probabilities, float32 (batch, {network.num_classes})",
        "versions": {"kdcache": __version__, "torch": torch.__version__},
    }
