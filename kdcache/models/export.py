"""Export of a network for deployment: pixels in, probabilities out, in a file that needs no kdcache."""

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdcache import __version__
from kdcache.datasets import Split
from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.files import write_atomically
from kdcache.models import checkpoint
from kdcache.models.network import Network
from kdcache.models.predictor import load_predictor

__all__ = ["FORMATS", "ExportModule", "Exported", "export", "images_to_compare", "random_images"]

CHECKED_IMAGES = 64
"""Number of images on which the exported file is compared with the network."""

TOLERANCE = 1e-3
"""Largest difference of a probability; other runtimes round differently."""

OPSET = 18
"""Version of the operators of ONNX: the oldest one that torch writes, since other tools lag behind."""


Facts = Mapping[str, Any]
Write = Callable[[Network, Facts, Tensor, Path], None]
Run = Callable[[Path, Tensor], Tensor]


class ExportModule(nn.Module):
    """A network with its normalization and softmax, as the few plain operations that other tools know.

    Parameters
    ----------
    network : Network
        Is copied: in the memory format of training, pooling would become operations on strides.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.body = copy.deepcopy(network.body).cpu().to(memory_format=torch.contiguous_format).eval()
        scale = [1 / (255 * std) for std in network.std]
        shift = [-mean / std for mean, std in zip(network.mean, network.std, strict=True)]
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities (B, C), float32, from pixels (B, 3, H, W), uint8."""
        logits: Tensor = self.body(images.float() * self.scale + self.shift)
        return logits.float().softmax(1)


class Exported(NamedTuple):
    """A file that was written and checked.

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


def export(network: Network, format: str, path: Path, images: Tensor, **facts: object) -> Exported:
    """Export a network, run the file on some images, and compare the probabilities.

    Parameters
    ----------
    network : Network
    format : str
        A key of `FORMATS`.
    path : Path
        File to create or replace.
    images : Tensor of uint8, shape (B, 3, S, S)
    **facts
        Names of the classes and the like, as for `kdcache.models.checkpoint.save`, for the file's metadata.

    Raises
    ------
    UsageError
        If a package that the format needs is not installed.
    KdcacheError
        If the network cannot be exported, or the file gives other probabilities. No file is written then.
    """
    network = network.cpu().eval()
    with torch.inference_mode():
        expected = network(images).float().softmax(1)
    write, run = FORMATS[format]
    difference = torch.tensor(torch.nan)

    def write_and_check(temporary: Path) -> None:
        nonlocal difference
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the exporters' internals
                write(network, facts, images, temporary)
                difference = (run(temporary, images) - expected).abs().max()
        except ImportError as error:
            remedy = f"Run pip install 'kdcache[{format}]'."
            raise UsageError(problem(f"--format {format}", got=first_line(error), remedy=remedy)) from error
        except Exception as error:  # exporters fail in many ways at networks they cannot trace
            what = f"could not export {network.name} as {format}"
            raise KdcacheError(problem(what, got=first_line(error))) from error
        if not difference <= TOLERANCE:
            what = f"exported probabilities differ from those of {network.name}, so {path} is not written"
            raise KdcacheError(
                problem(what, expected=f"a largest difference of at most {TOLERANCE}", got=difference.item())
            )

    write_atomically(path, write_and_check)
    return Exported(path, difference.item())


def _write_safetensors(network: Network, facts: Facts, images: Tensor, path: Path) -> None:
    checkpoint.save(network, path, **facts)


def _write_torch_export(network: Network, facts: Facts, images: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(ExportModule(network), (images,), dynamic_shapes=({0: batch},))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=_as_json(network, facts))


def _run_torch_export(path: Path, images: Tensor) -> Tensor:
    with path.open("rb") as file, torch.inference_mode():
        probabilities: Tensor = torch.export.load(file).module()(images)
    return probabilities


def _write_onnx(network: Network, facts: Facts, images: Tensor, path: Path) -> None:
    import onnxruntime  # noqa: F401, fails early if it is missing
    import onnxscript  # noqa: F401

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        ExportModule(network),
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    program.model.producer_name, program.model.producer_version = "kdcache", __version__
    for node in program.model.graph:
        node.metadata_props.clear()  # torch's notes on its code take as much room as a small network
    program.model.metadata_props.update(_as_json(network, facts))
    program.save(path, external_data=False)


def _as_json(network: Network, facts: Facts) -> dict[str, str]:
    """Describe a network by values of JSON, as in a checkpoint; class names are there in any case."""
    names = facts.get("class_names") or [str(label) for label in range(network.num_classes)]
    rendering = network.rendering.evaluation
    preprocessing = f"turned as EXIF says, RGB, {rendering}; pixels 0 to 255, (batch, 3, height, width), uint8"
    versions = {"kdcache": __version__, "torch": torch.__version__}
    stated = {key: getattr(network, key) for key in ("name", "num_classes", "mean", "std")}
    described = {
        **stated,
        **asdict(network.rendering),
        **facts,
        "class_names": names,
        "preprocessing": preprocessing,
        "versions": versions,
    }
    return {key: json.dumps(value) for key, value in described.items()}


def _run(path: Path, images: Tensor) -> Tensor:
    return load_predictor(path).probabilities(images)


FORMATS: dict[str, tuple[Write, Run]] = {
    "safetensors": (_write_safetensors, _run),
    "onnx": (_write_onnx, _run),
    "torch-export": (_write_torch_export, _run_torch_export),
}
