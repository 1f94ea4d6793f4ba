"""A network in an ONNX file, run by onnxruntime: a teacher that cannot be trained."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcache.errors import UsageError, first_line, problem

__all__ = [
    "SOURCE",
    "OnnxBody",
    "build_onnx_body",
    "class_names_of",
    "open_session",
    "read_onnx_body",
    "takes_pixels",
]

SOURCE = "onnx"
"""Prefix of the name of such a network, ``onnx:BYTES``: the size of the file, which is in its checkpoint."""

MAX_FILE_BYTES = 2**31 - 1
"""Larger ONNX files have their weights in other files."""

PROBABILITY_ERROR = 1e-3
"""Largest difference from 1 of the sum of a row of probabilities."""

MIN_PROBABILITY = 1e-30
"""Smaller ones are raised to it before their logarithm is taken."""


class OnnxBody(nn.Module):
    """Computes the logits of normalized images, or of pixels, by the network in an ONNX file.

    Parameters
    ----------
    size : int
        Bytes of the file. Without content, the logits are zeros.
    num_classes : int

    Attributes
    ----------
    file : Tensor of uint8
        The file, which is saved and fingerprinted like weights.
    gives_probabilities : Tensor of bool, shape ()
        Whether the logarithm of its output is taken.
    """

    file: Tensor
    gives_probabilities: Tensor
    precision = "float32"
    """Of its forwards, whatever the autocast of torch."""

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("file", torch.zeros(size, dtype=torch.uint8))
        self.register_buffer("gives_probabilities", torch.tensor(False))
        self._session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the session, which cannot be copied to another process."""
        return {**super().__getstate__(), "_session": None}

    @property
    def session(self) -> Any:
        """The session of onnxruntime, on the GPU where the images are, if it has one."""
        if self._session is None:
            self._session = open_session(self.file.cpu().numpy().tobytes(), self.file.device.type)
        return self._session

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, C), float32."""
        if self._session is None and not self.file.any():
            return images.new_zeros(len(images), self.num_classes)
        (given,) = self.session.get_inputs()
        pixels = images.float().cpu().contiguous().numpy()
        if given.type == "tensor(uint8)":
            pixels = pixels.round().astype(np.uint8)
        rows = given.shape[0] if isinstance(given.shape[0], int) else len(pixels)
        parts = [self._run(pixels[start : start + rows], rows) for start in range(0, len(pixels), rows)]
        found = torch.from_numpy(np.concatenate(parts))
        if self.gives_probabilities:
            found = found.clamp_min(MIN_PROBABILITY).log()
        return found.to(images.device)

    def _run(self, pixels: np.ndarray, rows: int) -> np.ndarray:
        """Run the network on at most as many images as it takes at once."""
        missing = rows - len(pixels)
        padded = np.concatenate([pixels, pixels[:1].repeat(missing, 0)]) if missing else pixels
        output: np.ndarray = self.session.run(None, {self.session.get_inputs()[0].name: padded})[0]
        return output[: len(pixels)]


def build_onnx_body(rest: str, num_classes: int, image_size: int) -> nn.Module:
    """Build the body of a network ``onnx:BYTES``, without content; see `kdcache.models.external.build_body`."""
    if not rest.isdecimal() or not 0 < int(rest) <= MAX_FILE_BYTES:
        raise UsageError(problem(f"network {SOURCE}:{rest}", expected="the size of an ONNX file", got=rest))
    return OnnxBody(int(rest), num_classes)


def read_onnx_body(path: Path, num_classes: int, image_size: int) -> OnnxBody:
    """Read an ONNX file with one input, images (B, 3, H, W) of float32 or uint8, and one output (B, C).

    Raises
    ------
    UsageError
        If it is another network, for other images or classes, or onnxruntime is not installed.
    """
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise UsageError(problem(f"weights {path}", expected=f"at most {MAX_FILE_BYTES} bytes", got=size))
    body, content = OnnxBody(size, num_classes), path.read_bytes()
    body.file = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    body._session = open_session(content, "cpu", f"weights {path}")
    inputs, outputs = body.session.get_inputs(), body.session.get_outputs()
    found = [[(end.type, *end.shape) for end in ends] for ends in (inputs, outputs)]
    fits = len(inputs) == len(outputs) == 1 and len(inputs[0].shape) == 4
    if not fits or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
        expected = "one input, images (B, 3, H, W) of float32 or uint8, and one output"
        raise UsageError(problem(f"weights {path}", expected=expected, got=found))
    images = torch.randint(0, 256, (4, 3, image_size, image_size), generator=torch.Generator().manual_seed(0)) / 255
    try:
        logits = body(images * (255 if inputs[0].type == "tensor(uint8)" else 1))
    except Exception as error:
        what = f"weights {path} fail on {image_size}x{image_size} images"
        raise UsageError(
            problem(what, got=first_line(error), remedy="Give the --image-size it was made for.")
        ) from error
    if logits.shape != (4, num_classes) or logits.dtype != torch.float32:
        got = f"{logits.dtype} {tuple(logits.shape)}"
        raise UsageError(problem(f"output of {path} for 4 images", expected=f"float32 (4, {num_classes})", got=got))
    sums_to_one = (logits.sum(1) - 1).abs().max() < PROBABILITY_ERROR
    body.gives_probabilities = ((logits >= 0).all() & sums_to_one).clone()
    return body


def takes_pixels(body: OnnxBody) -> bool:
    """Whether the network normalizes images itself."""
    is_uint8: bool = body.session.get_inputs()[0].type == "tensor(uint8)"
    return is_uint8


def class_names_of(body: OnnxBody) -> list[str]:
    """Names of the classes, which an ONNX file of kdcache states; else none."""
    with suppress(ValueError, TypeError):
        return list(map(str, json.loads(body.session.get_modelmeta().custom_metadata_map.get("class_names"))))
    return []


def open_session(data: bytes, device: str, what: str = "ONNX file", expected: str = "an ONNX file") -> Any:
    """Open a session of onnxruntime for a file that holds all of its weights.

    Parameters
    ----------
    data : bytes
        The file.
    device : str
        Type of the device of the images.
    what, expected : str
        For messages: the file, and what it should be.

    Raises
    ------
    UsageError
        If it is another file, or names others with its weights, which are no part of its fingerprint; or onnxruntime is
        not installed.
    """
    try:
        import onnxruntime
        from onnx import load_model_from_string
        from onnx.external_data_helper import _get_all_tensors, uses_external_data
    except ImportError as error:
        remedy = "Run pip install 'kdcache[onnx]'."
        raise UsageError(problem(what, got=first_line(error), remedy=remedy)) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    available = onnxruntime.get_available_providers()
    wanted = ["CUDAExecutionProvider"] if device == "cuda" and "CUDAExecutionProvider" in available else []
    try:
        if not any(map(uses_external_data, _get_all_tensors(load_model_from_string(data)))):
            return onnxruntime.InferenceSession(data, options, providers=[*wanted, "CPUExecutionProvider"])
    except Exception as error:  # protobuf and onnxruntime have their own types
        raise UsageError(problem(what, expected=expected, got=first_line(error))) from error
    remedy = "Save it in one file: onnx.save(onnx.load(FILE), NEW)."
    raise UsageError(problem(what, expected="its weights in it", got="in other files", remedy=remedy))
