"""A network that is evaluated: what is known of it before it is in memory, and what computes its logits then."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kdcache.accuracy import EVALUATION_REMEDY
from kdcache.cards import Rendering
from kdcache.compute import Compute
from kdcache.datasets import Dataset, Split
from kdcache.errors import UsageError, problem
from kdcache.models import Network
from kdcache.models.class_order import check_class_names
from kdcache.models.load import trained_network
from kdcache.models.predictor import Predictor, load_predictor

__all__ = ["EXPORTED", "EvaluatedNetwork", "Forward", "as_seen", "load_exported", "load_network", "require_fit"]

EXPORTED = "*.onnx"
"""Names of exported files that are evaluated."""


class Forward(NamedTuple):
    """A network in memory.

    Attributes
    ----------
    logits : callable
        Computes (B, C) from pixels (B, 3, S, S) on the device.
    network : Network or None
        In evaluation mode, on the device; ``None`` for an exported file.
    """

    logits: Callable[[Tensor], Tensor]
    network: Network | None


@dataclass(frozen=True, eq=False)
class EvaluatedNetwork:
    """A trained network, and the images to evaluate it on. It is not in memory until it is loaded.

    Attributes
    ----------
    name : str
        Run folder or file.
    file : Path
    model : str
    split : Split
    device : torch.device
    precision : str
        ``float32`` or ``bfloat16``; ``onnxruntime`` for an exported file, which has its own precisions.
    load : callable
        Returns the `Forward`.
    epoch : int or None
        After which it was written, if it is one of a run.
    teacher : Path or None
        File of the network that taught it, if that is evaluated too.
    """

    name: str
    file: Path
    model: str
    split: Split
    device: torch.device
    precision: str
    load: Callable[[], Forward]
    epoch: int | None = None
    teacher: Path | None = None

    @property
    def key(self) -> Path:
        """The file without links, by which students name their teacher."""
        return self.file.resolve()


def as_seen(data: Dataset, rendering: Rendering) -> Dataset:
    """Return the clean images as a network sees them, also where the crops of a training need one size for all."""
    return replace(data, card=replace(data.card, padding=None)).rendered(rendering)


def load_network(file: Path, data: Dataset, compute: Compute) -> Forward:
    """Load a network of kdcache for some data."""
    network = trained_network(file, data, "network").to(compute.device).eval()
    return Forward(partial(_forward, network, compute), network)


def load_exported(file: Path) -> Forward:
    """Load an exported file."""
    return Forward(partial(_log_probabilities, load_predictor(file)), None)


def _forward(network: Network, compute: Compute, images: Tensor) -> Tensor:
    work = f"an evaluation of {len(images)} images at a time"
    with compute.memory_explained(work, EVALUATION_REMEDY), compute.autocast():
        logits: Tensor = network(images)
    return logits


def _log_probabilities(predictor: Predictor, images: Tensor) -> Tensor:
    """Logarithms of probabilities are logits too, apart from a constant."""
    probabilities = predictor.probabilities(images)
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def require_fit(predictor: Predictor, data: Dataset) -> None:
    """Check that an exported network has the classes of some data, and its image size."""
    facts, what = predictor.facts, f"network {predictor.path}"
    for name, expected, got in (
        ("number of classes", data.num_classes, facts.num_classes),
        ("image size", data.image_size, facts.image_size),
    ):
        if expected != got:
            raise UsageError(problem(f"{what}: {name}", expected=f"{expected}, as in {data.card.name}", got=got))
    check_class_names(predictor.class_names, data.class_names, what)
