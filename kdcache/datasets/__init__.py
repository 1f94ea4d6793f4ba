"""Images with labels, read by name."""

from __future__ import annotations  # with which torch need not be imported to read a card

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.datasets.cards import CARDS, Card, card_of
from kdcache.words import FOLDER

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CARDS", "Card", "Dataset", "Split", "card_of", "found", "load"]

# The module that reads each dataset, imported when it is needed: torchvision alone takes seconds.
_READERS = {"fashion-mini": "packed", "fashion-mnist": "vision", "cifar10": "vision", "cifar100": "vision"}


@dataclass(frozen=True, eq=False)
class Split:
    """The images of a training or test set, on the CPU.

    Parameters
    ----------
    images : Tensor
        (N, 3, H, W) uint8, red, green and blue from 0 to 255.
    labels : Tensor
        (N,) int64, classes counted from 0.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, samples: Tensor) -> Tensor:
        """Return the images of some samples: the one way by which training reads images.

        Parameters
        ----------
        samples : Tensor
            (B,) int64 indices on the CPU, in any order, repeated or not.

        Returns
        -------
        Tensor
            (B, 3, H, W) uint8.

        Raises
        ------
        IndexError
            If a sample does not exist.
        """
        return self.images.index_select(0, samples)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the shape, the images and the labels, as 64 hexadecimal digits."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset in memory.

    Parameters
    ----------
    card : Card
        Its facts; the number of classes is known now.
    class_names : tuple of str
        The name of each class, by label.
    train, test : Split
    """

    card: Card
    class_names: tuple[str, ...]
    train: Split
    test: Split

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.card.image_size


def load(name: str, *, root: Path = Path("datasets"), image_size: int | None = None, download: bool = False) -> Dataset:
    """Read a dataset into memory.

    Parameters
    ----------
    name : str
        ``fashion-mini`` (which ships with kdcache), ``fashion-mnist``, ``cifar10``, ``cifar100``, or ``folder:PATH``
        for a folder that holds ``train`` and ``val`` (or ``test``) with a folder of images for each class.
    root : Path
        Where torchvision's datasets lie, as torchvision lays them out.
    image_size : int, optional
        Height and width in pixels to which the images of ``folder:PATH`` are brought, 64 by default.
    download : bool
        Fetch one of torchvision's datasets into `root` if it is not there.

    Returns
    -------
    Dataset
        Its images have three channels: grey ones three equal channels. 28x28 images are zero-padded to 32x32.

    Raises
    ------
    UsageError
        If the name is unknown, the size does not fit the dataset, or the data are missing, damaged or unfit.
    KdcacheError
        If a download fails.
    """
    card = card_of(name, image_size)
    reader = import_module(f"kdcache.datasets.{_READERS.get(name, 'folder')}")
    dataset: Dataset = reader.load(card, root.expanduser(), download)
    return dataset


def found(root: Path) -> list[str]:
    """Name the datasets that can be read without a download: the shipped one, and those under a folder."""
    from kdcache.datasets import vision

    root = root.expanduser()
    pictures = sorted(path.parent for path in root.glob("*/train") if path.is_dir())
    return ["fashion-mini", *vision.found(root), *(f"{FOLDER}{path}" for path in pictures)]
