"""An ONNX file in int8, calibrated on training views."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache import run_data, setup
from kdcache.config import StudentConfig, TrainingConfig
from kdcache.datasets import Dataset
from kdcache.errors import UsageError
from kdcache.run.folder import FinishedRun
from kdcache.views import ViewPlan, Views

__all__ = ["calibration_images", "calibration_plan", "quantize", "training_views"]

CALIBRATION_BATCHES, BATCH_SIZE = 8, 32
"""How many steps of training views, and samples in each, the ranges of the activations are measured on."""

LAYERS = ("Conv", "MatMul", "Gemm")
"""Operators with weights."""


def calibration_images(run: FinishedRun, **places: Any) -> tuple[Dataset, str | None]:
    """Load the images of a run; if those without labels alone are gone, the others and a message.

    `places` are those of `kdcache.run_data.load_run_data`.
    """
    try:
        return run_data.load_run_data(run, split="train", **places), None
    except UsageError as error:
        data = run_data.load_run_data(run, split="test", **places)
        return data, f"calibrated on labelled images alone, because of this: {error}"


def calibration_plan(config: TrainingConfig, data: Dataset) -> tuple[ViewPlan, str | None]:
    """Make the view plan of a training; without the teacher, that of the student's own images, and a message."""
    if not isinstance(config, StudentConfig):
        return ViewPlan(len(data.train), data.image_size, data.card.padding, crop_flip=True, seed=config.seed), None
    try:
        return setup.make_plan(config, data), None
    except UsageError as error:
        own = setup.make_plan_for_size(config, len(data.train), data.card)
        return own, f"calibrated on views of the student's own images, because of this: {error}"


def training_views(plan: ViewPlan, data: Dataset) -> Iterator[Tensor]:
    """Make views of the first steps of a training, x and x', as it saw them: uint8 (B, 3, S, S)."""
    views = Views(data.train, plan, BATCH_SIZE, torch.device("cpu"))
    for batch in islice(views.epoch(0), CALIBRATION_BATCHES):
        yield batch.views.round().byte()  # mixup's are float32


def quantize(source: Path, views: Iterable[Tensor], target: Path) -> None:
    """Write an ONNX file in int8: weights with a scale for each channel, activations with one for each tensor.

    Parameters
    ----------
    source : Path
        File in float32.
    views : iterable of Tensor
        Pixels on which the ranges of the activations are measured.
    target : Path
        File to write. It keeps the metadata, apart from what the comparison with the network in float32 found.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Hands out the views."""

        def __init__(self) -> None:
            self.batches = iter(views)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Return the next input, or ``None`` at the end."""
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.contiguous().numpy()}

    with TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        entries = [entry for entry in model.metadata_props if entry.key != "verification"]  # which is of the source
        del model.metadata_props[:]
        model.metadata_props.extend(entries)
        onnx.save(model, str(prepared))
        quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # 2.7 times as fast as QInt8 on x86 with VNNI; ARM takes both
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_nodes_in_float(model.graph),
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # logits, which would have ties
        )


def _nodes_in_float(graph: Any) -> list[str]:
    """Name the nodes that stay in float32: the normalization of the pixels, and what makes probabilities."""
    before_layers, names = {"images", *(tensor.name for tensor in graph.initializer)}, []
    for node in graph.node:  # each comes after those whose outputs it takes
        is_before = node.op_type not in LAYERS and before_layers.issuperset(node.input)
        if is_before:
            before_layers.update(node.output)
        if is_before or node.op_type == "Softmax":
            names.append(node.name)
    return names
