"""The formats of exported networks: how a network is converted, and how a file computes probabilities.

`kdcache.choices.EXPORT_FORMATS` has a row for each. What `build_...` returns writes the network with further metadata.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from kdcache import __version__
from kdcache.models import checkpoint
from kdcache.models.network import Network
from kdcache.models.predictor import load_predictor

__all__ = ["OPENVINO_FILES", "OPSET", "ExportModule", "Facts", "Save"]

OPSET = 18
"""Version of the operators of ONNX: the oldest one that torch writes, since other tools lag behind."""

OPENVINO_FILES = {"model.xml", "model.bin"}
"""The network in the folder of OpenVINO, and its weights."""

OF_CHECKPOINT = ("class_names", "verification")
"""Facts that a file of kdcache does not state by itself."""

INPUT, OUTPUT = "images", "probabilities"

Facts = Mapping[str, Any]
Save = Callable[[Path, Facts], None]


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


def build_safetensors(network: Network, images: Tensor) -> Save:
    """Prepare a file of kdcache, which states the other facts in its own way."""

    def save(path: Path, facts: Facts) -> None:
        checkpoint.save(network, path, **{name: facts[name] for name in OF_CHECKPOINT if name in facts})

    return save


def build_torch_export(network: Network, images: Tensor) -> Save:
    """Convert to a program of ``torch.export``."""
    program = _program(network, images)

    def save(path: Path, facts: Facts) -> None:
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files=_as_json(facts))

    return save


def build_onnx(network: Network, images: Tensor) -> Save:
    """Convert to ONNX."""
    import onnxruntime  # noqa: F401, fails early if it is missing
    import onnxscript  # noqa: F401

    program = torch.onnx.export(
        ExportModule(network),
        (images,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=_dynamic_shapes(),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    program.model.producer_name, program.model.producer_version = "kdcache", __version__
    for node in program.model.graph:
        node.metadata_props.clear()  # torch's notes on its code take as much room as a small network

    def save(path: Path, facts: Facts) -> None:
        program.model.metadata_props.update(_as_json({**facts, "opset": OPSET}))
        program.save(path, external_data=False)

    return save


def build_openvino(network: Network, images: Tensor) -> Save:
    """Convert to OpenVINO in float32, from ONNX: OpenVINO's own converter reports its use over the network."""
    import openvino

    with TemporaryDirectory() as folder:
        source = Path(folder, "network.onnx")
        build_onnx(network, images)(source, {})
        model = openvino.Core().read_model(source)

    def save(path: Path, facts: Facts) -> None:
        for name, value in _as_json(facts).items():
            model.set_rt_info(value, ["kdcache", name])
        path.mkdir(exist_ok=True)
        openvino.save_model(model, path / "model.xml", compress_to_fp16=False)

    return save


def run_predictor(path: Path, images: Tensor) -> Tensor:
    """Compute probabilities by a file that ``kdcache predict`` reads."""
    return load_predictor(path).probabilities(images)


def run_torch_export(path: Path, images: Tensor) -> Tensor:
    """Compute probabilities by a program of ``torch.export``."""
    with path.open("rb") as file, torch.inference_mode():
        probabilities: Tensor = torch.export.load(file).module()(images)
    return probabilities


def run_openvino(path: Path, images: Tensor) -> Tensor:
    """Compute probabilities by OpenVINO on the CPU, in float32: by default it takes bfloat16 where the CPU has it."""
    import openvino

    model = openvino.Core().compile_model(path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(model(images.numpy())[0].copy())


def _program(network: Network, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(ExportModule(network), (images,), dynamic_shapes=_dynamic_shapes())


def _dynamic_shapes() -> Any:
    return ({0: torch.export.Dim("batch", min=1)},)


def _as_json(facts: Facts) -> dict[str, str]:
    """Write facts as JSON. Classes without names have their numbers."""
    if facts.get("class_names") == []:
        facts = {**facts, "class_names": [str(label) for label in range(facts["num_classes"])]}
    return {name: json.dumps(value) for name, value in facts.items()}
