"""Export of a network for deployment: pixels in, probabilities out, in a file that needs no kdcache."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.files import write_atomically
from kdcache.models import checkpoint
from kdcache.models.network import Network

__all__ = ["FORMATS", "ExportModule", "Exported", "export"]

CHECKED_IMAGES = 64
"""Random images on which the exported file is compared with the network."""

TOLERANCE = 1e-3
"""Largest difference of a probability; other runtimes round differently."""


class ExportModule(nn.Module):
    """A network with its preprocessing and softmax.

    Parameters
    ----------
    network : Network
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities (B, C), float32, from pixels (B, 3, H, W), uint8."""
        return self.network(images).float().softmax(1)


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


def export(network: Network, format: str, path: Path) -> Exported:
    """Export a network, run the file on random images, and compare the probabilities.

    Parameters
    ----------
    network : Network
    format : str
        A key of `FORMATS`.
    path : Path
        File to create or replace.

    Raises
    ------
    UsageError
        If a package that the format needs is not installed.
    KdcacheError
        If the network cannot be exported, or the file gives other probabilities. No file is written then.
    """
    size = network.image_size
    images = torch.randint(0, 256, (CHECKED_IMAGES, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    deployed = ExportModule(network.cpu()).eval()
    with torch.inference_mode():
        expected = deployed(images)
    write, run = FORMATS[format]
    difference = torch.tensor(torch.nan)

    def write_and_check(temporary: Path) -> None:
        nonlocal difference
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the exporters' internals
                write(deployed, images, temporary)
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


def _write_safetensors(deployed: ExportModule, images: Tensor, path: Path) -> None:
    checkpoint.save(deployed.network, path)


def _run_safetensors(path: Path, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return ExportModule(checkpoint.load(path))(images)


def _write_torch_export(deployed: ExportModule, images: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(deployed, (images,), dynamic_shapes=({0: batch},))
    with path.open("wb") as file:
        torch.export.save(program, file)


def _run_torch_export(path: Path, images: Tensor) -> Tensor:
    with path.open("rb") as file, torch.inference_mode():
        probabilities: Tensor = torch.export.load(file).module()(images)
    return probabilities


def _write_onnx(deployed: ExportModule, images: Tensor, path: Path) -> None:
    import onnxruntime  # noqa: F401, fails early if it is missing
    import onnxscript  # noqa: F401

    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        deployed,
        (images,),
        path,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _run_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


Write = Callable[[ExportModule, Tensor, Path], None]
Run = Callable[[Path, Tensor], Tensor]

FORMATS: dict[str, tuple[Write, Run]] = {
    "safetensors": (_write_safetensors, _run_safetensors),
    "onnx": (_write_onnx, _run_onnx),
    "torch-export": (_write_torch_export, _run_torch_export),
}
