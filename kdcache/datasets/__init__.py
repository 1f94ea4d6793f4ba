"""Images with labels, read by name."""

from __future__ import annotations  # with which torch need not be imported to read a card

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX
from kdcache.datasets.cards import CARDS, Card, card_of
from kdcache.errors import UsageError, problem

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.datasets.pictures import Box, Pictures

__all__ = ["CARDS", "Card", "Dataset", "Split", "card_of", "found", "load", "read", "without_bad"]

# The module that reads each dataset, imported when it is needed: torchvision alone takes seconds.
_READERS = {
    "fashion-mini": "packed",
    "fashion-mnist": "vision",
    "cifar10": "vision",
    "cifar100": "vision",
    "tiny-imagenet": "tiny",
    "imagenet": "imagenet",
}

HELD_BYTES = 2 * 2**30
"""Bytes of a split up to which the images are held in memory, where x is cut out of the clean view."""

SHARE_KEY = 0x5EED
"""Decides which images are kept for validation, and which are trained on: the same ones in every run."""

log = logging.getLogger("kdcache")


@dataclass(frozen=True, eq=False)
class Split:
    """The images of a training or test set.

    Parameters
    ----------
    images : Tensor or None
        (N, 3, H, W) uint8 on the CPU, red, green and blue from 0 to 255; ``None`` where pictures become such images as
        they are asked for.
    labels : Tensor
        (N,) int64, classes counted from 0.
    pictures : Pictures, optional
        What the images are decoded from, or were. The fingerprint is theirs.
    """

    images: Tensor | None
    labels: Tensor
    pictures: Pictures | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        if self.images is not None:
            return self.images.shape[-1]
        assert self.pictures is not None
        return self.pictures.size

    @property
    def workers(self) -> int:
        """Processes that get images ready ahead; none where they are in memory."""
        return self.pictures.workers if self.images is None and self.pictures else 0

    def take(self, samples: Tensor) -> Tensor:
        """Return the clean views of some samples: with `pieces`, the one way by which training reads images.

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
        UsageError
            If a picture cannot be read.
        """
        if self.images is not None:
            return self.images.index_select(0, samples)
        assert self.pictures is not None
        return self.pictures.clean(samples)

    def resized_crops(self, samples: Tensor, draws: np.ndarray, box: Callable[[int, int, int], Box]) -> Tensor:
        """Return a part of each picture, resized, see `kdcache.datasets.pictures.Pictures.pieces`.

        Raises
        ------
        UsageError
            If there are no pictures, but images alone.
        """
        if self.pictures is None:
            raise UsageError("parts of pictures are to be resized, but there are images of one size alone")
        return self.pictures.resized_crops(samples, draws, box)

    def part(self, rows: np.ndarray) -> Split:
        """Take some of the samples, in this order."""
        images = None if self.images is None else self.images[rows]
        return Split(images, self.labels[rows], self.pictures.part(rows) if self.pictures else None)

    def hold(self) -> Split:
        """Decode all pictures into memory."""
        import torch

        if self.images is not None:
            return self
        return Split(self.take(torch.arange(len(self))), self.labels, self.pictures)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content, as 64 hexadecimal digits.

        Of pictures it is over the bytes of each as it is encoded, the sizes to which they are brought, and the labels;
        each is hashed once, see `kdcache.datasets.manifest`. Otherwise it is over the shape, the images and the labels.
        """
        if self.pictures is not None:
            return self._of_pictures(self.pictures)
        assert self.images is not None
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def _of_pictures(self, pictures: Pictures) -> str:
        from kdcache.datasets.manifest import Manifest

        manifest = Manifest.of(pictures.source)
        manifest.know(pictures.workers)
        chosen = slice(None) if pictures.chosen is None else pictures.chosen
        digest = hashlib.sha256(repr((len(self), pictures.size, pictures.shorter_side)).encode())
        digest.update(manifest.digests[chosen].tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset that was read.

    Parameters
    ----------
    card : Card
        Its facts; the number of classes is known now.
    class_names : tuple of str
        The name of each class, by label.
    train, test : Split
    val : Split, optional
        What was kept from training for validation.
    skipped : int
        Pictures that cannot be read and were left out.
    """

    card: Card
    class_names: tuple[str, ...]
    train: Split
    test: Split
    val: Split | None = None
    skipped: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.card.image_size


def load(
    name: str,
    *,
    root: Path = Path("datasets"),
    image_size: int | None = None,
    download: bool = False,
    on_bad_image: str = "error",
    val_fraction: float = 0.0,
    train_fraction: float = 1.0,
    workers: int | None = None,
) -> Dataset:
    """Read a dataset and make it ready for training.

    Parameters
    ----------
    name : str
        A key of `CARDS`, of which ``fashion-mini`` ships with kdcache; ``folder:PATH`` for a folder that holds
        ``train`` and ``val`` (or ``test``) with a folder of pictures for each class; ``hdf5:FILE`` for a file that
        ``kdcache data pack`` wrote.
    root : Path
        Where datasets with a name lie.
    image_size : int, optional
        Height and width in pixels to which pictures are brought, where they have no size of their own.
    download : bool
        Fetch the dataset into `root` if it is not there.
    on_bad_image : str
        ``error`` to refuse a picture that cannot be read, when it is come upon; ``skip`` to leave such pictures out,
        for which all are tried once.
    val_fraction : float
        Share of each class to keep from training for validation.
    train_fraction : float
        Share of what is left of each class to train on; a smaller share is a part of a larger one.
    workers : int, optional
        Processes that decode pictures, by default one for each core.

    Returns
    -------
    Dataset
        Its images have three channels: grey ones three equal channels. 28x28 images are zero-padded to 32x32. Images
        that are cut out of clean views are held in memory up to `HELD_BYTES` of a split; others are decoded each time.

    Raises
    ------
    UsageError
        If the name is unknown, the size does not fit the dataset, or the data are missing, damaged or unfit.
    KdcacheError
        If a download fails.
    """
    data = read(name, root=root, image_size=image_size, download=download, workers=workers)
    if on_bad_image == "skip":
        data = without_bad(data)
    if data.card.padding is not None:
        data = replace(data, train=_held(data.train), test=_held(data.test))
    if val_fraction:
        data = _with_validation(data, val_fraction)
    if train_fraction < 1:
        of_each = _share(data, train_fraction, "--train-fraction")
        data = replace(data, train=data.train.part(np.flatnonzero(of_each)))
    return data


def read(
    name: str,
    *,
    root: Path = Path("datasets"),
    image_size: int | None = None,
    download: bool = False,
    workers: int | None = None,
) -> Dataset:
    """Read a dataset as it lies there: no picture is decoded, and nothing left out. See `load`."""
    from kdcache.datasets.workers import default_workers

    workers = default_workers() if workers is None else workers
    if name.startswith(HDF5_PREFIX) and name != HDF5_PREFIX:
        from kdcache.datasets import packed

        return packed.load_file(name, image_size, workers)
    card, root = card_of(name, image_size), root.expanduser()
    if download:
        from kdcache.datasets import fetch

        fetch.fetch(card.name, root)
    reader = import_module(f"kdcache.datasets.{_READERS.get(name, 'folder')}")
    dataset: Dataset = reader.load(card, root, workers)
    return dataset


def found(root: Path) -> list[str]:
    """Name the datasets that can be read without a download: the shipped one, and those under a folder."""
    root = root.expanduser()
    named = [
        name
        for name, card in CARDS.items()
        if not card.folders or any((root / folder).is_dir() for folder in card.folders)
    ]
    known = {root / folder for card in CARDS.values() for folder in card.folders}
    own = sorted({path.parent for path in root.glob("*/train") if path.is_dir()} - known)
    return [*named, *(f"{FOLDER_PREFIX}{path}" for path in own)]


def _held(split: Split) -> Split:
    return split.hold() if 3 * len(split) * split.image_size**2 <= HELD_BYTES else split


def without_bad(data: Dataset) -> Dataset:
    """Leave out the pictures that cannot be read, for which all that were not tried yet are tried."""
    splits, skipped = [], 0
    for split in (data.train, data.test):
        if split.pictures is not None:
            from kdcache.datasets.manifest import Manifest

            pictures, manifest = split.pictures, Manifest.of(split.pictures.source)
            manifest.know(pictures.workers, decodes=True)
            chosen = np.arange(len(split)) if pictures.chosen is None else pictures.chosen
            sound = np.flatnonzero(~np.isin(chosen, manifest.bad))
            if not len(sound):
                raise UsageError(
                    problem(f"pictures of {pictures.source.place}", expected="at least one that can be read")
                )
            for picture in chosen[np.isin(chosen, manifest.bad)][:5].tolist():
                log.warning("left out, since it cannot be read: %s", pictures.source.name(picture))
            skipped += len(split) - len(sound)
            split = split.part(sound) if len(sound) < len(split) else split
        splits.append(split)
    if skipped:
        log.warning("%d pictures of %s are left out", skipped, data.card.name)
    return replace(data, train=splits[0], test=splits[1], skipped=skipped)


def _with_validation(data: Dataset, fraction: float) -> Dataset:
    """Keep a share of each class from training."""
    kept = _share(data, fraction, "--val-fraction")
    train, val = data.train.part(np.flatnonzero(~kept)), data.train.part(np.flatnonzero(kept))
    return replace(data, train=train, val=val)


def _share(data: Dataset, fraction: float, option: str) -> np.ndarray:
    """Choose a share of each class, rounded: at least one image, and never all of them. Bool (N,)."""
    labels = data.train.labels.numpy()
    chosen = np.zeros(len(labels), bool)
    order = np.random.Generator(np.random.Philox(SHARE_KEY)).permutation(len(labels))
    for label in range(data.num_classes):
        of_class = order[labels[order] == label]
        count = max(1, round(fraction * len(of_class)))
        if count >= len(of_class):
            what = f"training images of class {data.class_names[label]} for {option} {fraction}"
            raise UsageError(problem(what, expected=f"more than {count}", got=len(of_class)))
        chosen[of_class[:count]] = True
    return chosen
