"""Trained networks, loaded for some data: from a file of kdcache, a published checkpoint, or torchvision."""

import importlib.resources
from pathlib import Path

from kdcache import models
from kdcache.choices import trust
from kdcache.datasets import Dataset
from kdcache.errors import UsageError, problem
from kdcache.models import Network, checkpoint, published

__all__ = ["SHIPPED", "find_network", "shipped_teacher", "trained_network"]

SHIPPED = "shipped"
"""Stands for the file of the ``fashion-mini`` teacher that comes with kdcache."""


def trained_network(weights: Path, data: Dataset) -> Network:
    """Load a network from its file, for some data.

    Raises
    ------
    UsageError
        If it has another number of classes, or another image size.
    """
    network = checkpoint.load(weights)
    expected = {"number of classes": data.num_classes, "image size": data.image_size}
    found = {"number of classes": network.num_classes, "image size": network.image_size}
    problems = [
        problem(f"teacher {weights}: {what}", expected=f"{expected[what]}, as in {data.card.name}", got=found[what])
        for what in expected
        if expected[what] != found[what]
    ]
    if problems:
        raise UsageError(*problems)
    return network


def find_network(
    weights: str | Path,
    data: Dataset,
    model: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[Network, float | None]:
    """Load a trained network for some data from a file of kdcache, a published checkpoint, or torchvision's weights.

    Parameters
    ----------
    weights : str or Path
        A file, `SHIPPED`, or the name of weights in torchvision.
    data : Dataset
    model : str, optional
        Name of the network; by default the one that the file names, or that its tensors fit.
    mean, std : tuple of float, optional
        Normalization; by default that of the weights, or of the data.

    Returns
    -------
    network : Network
    published : float or None
        Published top-1 accuracy in percent, if it is known.
    """
    if weights == SHIPPED:
        weights = shipped_teacher()
    if Path(weights).suffix == ".safetensors" and checkpoint.is_kdcache_file(Path(weights)):
        return trained_network(Path(weights), data), None
    if model and model.startswith("torchvision:") and not Path(weights).exists():
        stated = published.download_torchvision(model, str(weights))
    else:
        stated = published.read(Path(weights))
    name = model or published.most_similar_network(stated.state)
    if name is None:
        remedy = "Name the network with --model."
        raise UsageError(problem(f"weights {weights}", expected="the tensors of a known network", remedy=remedy))
    trust(name)
    network = models.build(
        name,
        num_classes=data.num_classes,
        image_size=data.image_size,
        mean=mean or stated.mean or data.card.mean,
        std=std or stated.std or data.card.std,
        seed=0,
    )
    published.load_into(network, stated.state, weights)
    return network, published.KNOWN_ACCURACY.get((data.card.name, name)) or stated.accuracy


def shipped_teacher() -> Path:
    """Path of the teacher that comes with kdcache."""
    return Path(str(importlib.resources.files("kdcache.data") / "fashion-mini-teacher.safetensors"))
