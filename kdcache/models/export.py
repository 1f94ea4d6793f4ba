"""A network for deployment: pixels in, probabilities out, in a file that needs no kdcache."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdcache.errors import KdcacheError, UsageError, first_line, problem
from kdcache.files import write_atomically
from kdcache.models import Network, checkpoint

__all__ = ["FORMATS", "Deployed", "Exported", "export"]

CHECKED = 64
"""Random images on which an exported file is compared with the network."""

TOLERANCE = 1e-3
"""Difference of a probability that other kernels may make."""


class Deployed(nn.Module):
    """A network with its preprocessing and softmax.

    Parameters
    ----------
    network : Network
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Turn pixels (B, 3, H, W), uint8, into probabilities (B, C), float32."""
        return self.network(images).float().softmax(1)


class Exported(NamedTuple):
    """A file that was written and tried.

    Attributes
    ----------
    path : Path
    difference : float
        Largest difference of a probability from the network's own.
    """

    path: Path
    difference: float


def export(network: Network, format: str, path: Path) -> Exported:
    """Write a network for deployment, run the file on random images, and compare.

    Parameters
    ----------
    network : Network
    format : str
        A key of `FORMATS`.
    path : Path
        File to write.

    Raises
    ------
    UsageError
        Where a package is missing that the format needs.
    KdcacheError
        Where the network cannot be exported, or the file gives other answers; nothing is left then.
    """
    size = network.image_size
    images = torch.randint(0, 256, (CHECKED, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    deployed = Deployed(network.cpu()).eval()
    with torch.inference_mode():
        expected = deployed(images)
    write, run = FORMATS[format]
    difference = torch.tensor(torch.nan)

    def write_and_try(temporary: Path) -> None:
        nonlocal difference
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # exporters warn of their own insides
                write(deployed, images, temporary)
                difference = (run(temporary, images) - expected).abs().max()
        except ImportError as error:
            remedy = f"after pip install 'kdcache[{format}]'"
            raise UsageError(problem(f"--format {format}", expected=remedy, got=first_line(error))) from error
        except Exception as error:  # exporters fail in many ways at networks they cannot trace
            what = f"{network.name} cannot be exported as {format}"
            raise KdcacheError(problem(what, got=first_line(error))) from error
        if not difference <= TOLERANCE:
            what = f"{path} does not give the answers of {network.name}"
            raise KdcacheError(problem(what, expected=f"a difference of {TOLERANCE}", got=difference.item()))

    write_atomically(path, write_and_try)
    return Exported(path, difference.item())


def _write_safetensors(deployed: Deployed, images: Tensor, path: Path) -> None:
    checkpoint.save(deployed.network, path)


def _run_safetensors(path: Path, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return Deployed(checkpoint.load(path))(images)


def _write_torch_export(deployed: Deployed, images: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(deployed, (images,), dynamic_shapes=({0: batch},))
    with path.open("wb") as file:
        torch.export.save(program, file)


def _run_torch_export(path: Path, images: Tensor) -> Tensor:
    with path.open("rb") as file, torch.inference_mode():
        found: Tensor = torch.export.load(file).module()(images)
    return found


def _write_onnx(deployed: Deployed, images: Tensor, path: Path) -> None:
    import onnxruntime  # noqa: F401, to miss it before the work
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


Write = Callable[[Deployed, Tensor, Path], None]
Run = Callable[[Path, Tensor], Tensor]

FORMATS: dict[str, tuple[Write, Run]] = {
    "safetensors": (_write_safetensors, _run_safetensors),
    "onnx": (_write_onnx, _run_onnx),
    "torch-export": (_write_torch_export, _run_torch_export),
}
