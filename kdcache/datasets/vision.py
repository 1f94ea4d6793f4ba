"""The datasets that torchvision can fetch and read, in its layout."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from kdcache.datasets import Dataset
from kdcache.datasets.arrays import make_split
from kdcache.datasets.cards import Card
from kdcache.errors import KdcacheError, UsageError, fault

__all__ = ["found", "load"]

_SOURCES: dict[str, tuple[Any, str]] = {
    "fashion-mnist": (FashionMNIST, "FashionMNIST/raw"),
    "cifar10": (CIFAR10, CIFAR10.base_folder),
    "cifar100": (CIFAR100, CIFAR100.base_folder),
}

# What torchvision raises at files that are missing, fail their checksum or cannot be parsed, and at a dead network.
_FAILURES = (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError)


def load(card: Card, root: Path, download: bool) -> Dataset:
    """Read one of torchvision's datasets.

    Parameters
    ----------
    card : Card
        Its `name` says which.
    root : Path
        The folder that holds the dataset's own folder.
    download : bool
        Fetch the dataset if it is not there.

    Raises
    ------
    UsageError
        If the files are missing or damaged. CIFAR's are unpickled only after their checksums proved right.
    KdcacheError
        If a download fails.
    """
    source, folder = _SOURCES[card.name][0], root / _SOURCES[card.name][1]
    try:
        train, test = (source(root, train=train, download=download) for train in (True, False))
    except _FAILURES as error:
        if download:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise KdcacheError(
                fault(f"cannot fetch {card.name} into {folder}, or read it there", given=reason[0])
            ) from error
        what, remedy = (
            (f"{card.name} in {folder} has missing or damaged files", "delete them and give --download")
            if folder.is_dir()
            else (f"{card.name} is not in {folder}", "give --download")
        )
        raise UsageError(
            fault(what, allowed=f"the unpacked files of {card.source} ({remedy} to fetch them)")
        ) from error
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
