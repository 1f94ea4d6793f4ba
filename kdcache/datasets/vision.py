"""The datasets that torchvision reads, in its layout."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from kdcache.cards import Card
from kdcache.datasets.arrays import make_split
from kdcache.datasets.split import Dataset
from kdcache.errors import UsageError, problem

__all__ = ["load"]

_SOURCES: dict[str, Any] = {"fashion-mnist": FashionMNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}

# What torchvision raises for files that are missing, fail their checksum, or cannot be parsed.
_FAILURES = (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError)


def load(card: Card, root: Path, workers: int) -> Dataset:
    """Read a dataset of torchvision.

    Parameters
    ----------
    card : Card
    root : Path
        Contains the folder of the dataset.
    workers : int
        Not used.

    Raises
    ------
    UsageError
        If the files are missing or damaged. CIFAR's pickles are read only after their checksums were verified.
    """
    source, folder = _SOURCES[card.name], root / card.folders[0]
    try:
        train, test = (source(root, train=train) for train in (True, False))
    except _FAILURES as error:
        what, remedy = f"{card.name} is not in {folder}", f"Run 'kdcache data fetch {card.name}', or add --download."
        if folder.is_dir():
            what, remedy = f"files of {card.name} in {folder} are missing or damaged", f"Delete the folder. {remedy}"
        raise UsageError(problem(what, remedy=remedy)) from error
    train_split, test_split = (
        make_split(f"{folder} ({part})", card, _with_channels(np.asarray(data.data)), np.asarray(data.targets))
        for part, data in (("train", train), ("test", test))
    )
    return Dataset(card, tuple(train.classes), train_split, test_split)


def _with_channels(images: np.ndarray) -> np.ndarray:
    return images[..., None] if images.ndim == 3 else images
