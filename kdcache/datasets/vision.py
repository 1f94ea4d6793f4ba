"""The datasets that torchvision can read, in its layout."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from kdcache.datasets import Dataset
from kdcache.datasets.arrays import make_split
from kdcache.datasets.cards import Card
from kdcache.errors import UsageError, problem

__all__ = ["load"]

_SOURCES: dict[str, Any] = {"fashion-mnist": FashionMNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}

# What torchvision raises at files that are missing, fail their checksum or cannot be parsed.
_FAILURES = (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError)


def load(card: Card, root: Path, workers: int) -> Dataset:
    """Read one of torchvision's datasets.

    Parameters
    ----------
    card : Card
        Its `name` says which.
    root : Path
        The folder that holds the dataset's own folder.

    Raises
    ------
    UsageError
        If the files are missing or damaged. CIFAR's are unpickled only after their checksums proved right.
    """
    source, folder = _SOURCES[card.name], root / card.folders[0]
    try:
        train, test = (source(root, train=train) for train in (True, False))
    except _FAILURES as error:
        there = folder.is_dir()
        what = f"{card.name} in {folder} has missing or damaged files" if there else f"{card.name} is not in {folder}"
        remedy = f"'kdcache data fetch {card.name}' or --download" + (" after deleting them" if there else "")
        raise UsageError(problem(what, expected=f"the unpacked files of {card.source} ({remedy})")) from error
    train_split, test_split = (
        make_split(f"{folder} ({part})", card, _with_channels(np.asarray(data.data)), np.asarray(data.targets))
        for part, data in (("train", train), ("test", test))
    )
    return Dataset(card, tuple(train.classes), train_split, test_split)


def found(root: Path) -> list[str]:
    """Name those whose folder is there."""
    return [name for name, (_, folder) in _SOURCES.items() if (root / folder).is_dir()]


def _with_channels(images: np.ndarray) -> np.ndarray:
    return images[..., None] if images.ndim == 3 else images
