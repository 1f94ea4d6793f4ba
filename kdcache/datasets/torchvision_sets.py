"""The datasets of torchvision that have a training and a test set, by the names of their classes there."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdcache.choices import TORCHVISION_PREFIX
from kdcache.datasets.custom import ImageData
from kdcache.errors import KdcacheError, UsageError, did_you_mean, first_line, problem

__all__ = ["SETS", "fetch", "read"]

SECONDS_TO_ANSWER = 60
"""Time that a server may keep a download waiting."""


class Parts(NamedTuple):
    """Arguments that choose the training and the test set."""

    train: Mapping[str, str]
    test: Mapping[str, str]


_TRAIN_TEST = Parts({"split": "train"}, {"split": "test"})
_TRAIN_VAL = Parts({"split": "train"}, {"split": "val"})
_TRAINVAL_TEST = Parts({"split": "trainval"}, {"split": "test"})

SETS = {
    "Country211": Parts({"split": "train"}, {"split": "valid"}),
    "DTD": _TRAIN_TEST,
    "FGVCAircraft": _TRAINVAL_TEST,
    "Flowers102": _TRAIN_TEST,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "Imagenette": _TRAIN_VAL,
    "OxfordIIITPet": _TRAINVAL_TEST,
    "RenderedSST2": _TRAIN_TEST,
    "STL10": _TRAIN_TEST,
    "SVHN": _TRAIN_TEST,
}
"""Datasets by name. Those of a folder for each class and no test set are read with ``folder:PATH``."""


def read(name: str, root: Path) -> ImageData:
    """Read a dataset that lies in a folder where torchvision finds it. Nothing is downloaded.

    Raises
    ------
    UsageError
        If there is no such dataset, or it is not there or damaged.
    """
    try:
        train, test = _open(name, root, download=False)
    except UsageError:
        raise
    except Exception as error:  # torchvision raises many types for files that are missing or damaged
        remedy = f"Run 'kdcache data fetch {name}', or add --download."
        what = f"{name} is not in {root}, or damaged"
        got = first_line(error).removesuffix(" You can use download=True to download it.")
        raise UsageError(problem(what, got=got, remedy=remedy)) from error
    pairs = [_images_and_labels(part) for part in (train, test)]
    names = getattr(train, "classes", None)
    if names is None:
        names = [f"class {label}" for label in range(1 + max(int(np.max(labels)) for _, labels in pairs))]
    # Imagenette gives each class several names.
    return ImageData([one if isinstance(one, str) else one[0] for one in names], train=pairs[0], test=pairs[1])


def fetch(name: str, root: Path) -> Path:
    """Download a dataset with torchvision, unless it is there already.

    Raises
    ------
    UsageError
        If there is no such dataset.
    KdcacheError
        If the download fails.
    """
    try:
        with _timeout(SECONDS_TO_ANSWER):
            _open(name, root, download=True)
    except UsageError:
        raise
    except Exception as error:
        remedy = f"Without a network connection, copy the files into {root}, as torchvision lays them out."
        what = f"could not download {name} into {root}"
        raise KdcacheError(problem(what, got=first_line(error), remedy=remedy)) from error
    return root


def _open(name: str, root: Path, download: bool) -> tuple[Any, Any]:
    short = name.removeprefix(TORCHVISION_PREFIX)
    if short not in SETS:
        known = ("CIFAR10", "CIFAR100", "FashionMNIST", *SETS)
        expected, remedy = f"one of {', '.join(known)}", did_you_mean(short, known)
        raise UsageError(problem("dataset of torchvision", expected=expected, got=short, remedy=remedy))
    from torchvision import datasets

    kind = getattr(datasets, short)
    train, test = (kind(root, download=download, **part) for part in SETS[short])
    return train, test


def _images_and_labels(data: Any) -> tuple[Any, Any]:
    """Take the paths of image files, which stay on disk, or an array of images; and the labels."""
    for attribute in ("samples", "_samples"):
        if hasattr(data, attribute):
            paths, labels = zip(*getattr(data, attribute), strict=True)
            return [*map(str, paths)], labels
    for attribute in ("_image_files", "_images"):
        if hasattr(data, attribute):
            return [*map(str, getattr(data, attribute))], data._labels
    return np.ascontiguousarray(np.transpose(data.data, (0, 2, 3, 1))), data.labels  # SVHN and STL10 have (N, C, H, W)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit the time of a connection that does not say how long it waits."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
