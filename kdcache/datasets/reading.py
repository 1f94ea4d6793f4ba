"""Reading a dataset by name, and preparing it for a training."""

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from kdcache.cards import CARDS, CUSTOM_DATASETS, NAMED, canonical, card_of
from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX, HF_PREFIX, MAX_PIXELS, TORCHVISION_PREFIX
from kdcache.datasets import custom
from kdcache.datasets.class_names import check_class_names
from kdcache.datasets.split import Dataset, Split
from kdcache.errors import UsageError, abbreviated, problem
from kdcache.extensions import is_address
from kdcache.files import expanded

__all__ = ["list_available", "load", "read", "without_bad_images"]

MAX_BYTES_IN_MEMORY = 2 * 2**30
"""Size up to which the images of a split are held in memory, if x is a crop of the clean view."""

SUBSET_KEY = 0x5EED
"""Key of the random order that decides which images are held out and trained on: the same ones in every run."""

MAX_BAD_IMAGES_LISTED, MAX_NAMES_LISTED = 5, 5

log = logging.getLogger("kdcache")


def load(
    name: str,
    *,
    root: Path = Path("datasets"),
    image_size: int | None = None,
    crop: str | None = None,
    download: bool = False,
    on_bad_image: str = "error",
    val_fraction: float = 0.0,
    train_fraction: float = 1.0,
    unlabelled: str | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Read a dataset and prepare it for a training.

    Parameters
    ----------
    name : str
        A key of `CARDS`; ``folder:PATH`` for a folder that contains ``train`` and ``val`` (or ``test``), each with a
        folder of images for each class, or has another layout of `kdcache.datasets.folder`; ``hdf5:FILE`` for a file
        that ``kdcache data pack`` wrote; ``hf:NAME`` for a dataset of the Hugging Face Hub or a folder of its Parquet
        files; ``torchvision:NAME`` for a dataset of torchvision; ``python:MODULE:CALLABLE`` for a function that returns
        `ImageData`.
    root : Path
        Folder of the downloaded datasets.
    image_size : int, optional
        Height and width in pixels, for datasets without a fixed size.
    crop : str, optional
        Random crop of x: ``resized`` or ``padded``, see `kdcache.cards.cropped`; by default that of the dataset.
    download : bool
        Download the dataset into `root` if it is missing.
    on_bad_image : str
        ``error`` to raise an error for an image that cannot be decoded, when it is needed, or if it is known to be bad,
        when the images are hashed; ``skip`` to decode all images once, and leave the bad ones out.
    val_fraction : float
        Fraction of each class to hold out from the training images for validation.
    train_fraction : float
        Fraction of each class of the remaining images to train on. A smaller fraction is a subset of a larger one; 0
        leaves the unlabelled images alone.
    unlabelled : str, optional
        Further training images, without labels, see `kdcache.datasets.unlabelled.read_unlabelled`.
    workers : int, optional
        Processes that decode images; by default one per core.
    max_pixels : int
        Pixels above which an image is not decoded.

    Returns
    -------
    Dataset
        Its images have three channels; gray images three equal ones. 28x28 images are zero-padded to 32x32. Images of
        which x is a crop of the clean view are held in memory, up to `MAX_BYTES_IN_MEMORY` per split; all others are
        decoded each time.

    Raises
    ------
    UsageError
        If the name is unknown, the size does not fit the dataset, or the data are missing, damaged or unsuitable.
    KdcacheError
        If a download fails.
    """
    data = read(
        name,
        root=root,
        image_size=image_size,
        crop=crop,
        download=download,
        workers=workers,
        max_pixels=max_pixels,
    )
    extra = None
    if unlabelled is not None:
        from kdcache.datasets.unlabelled import append_unlabelled, read_unlabelled

        extra = read_unlabelled(unlabelled, data.card, max_pixels, workers)
    pictures = (split.pictures for split in (data.train, data.test, extra) if split and split.pictures)
    for place, source in {each.source.place: each.source for each in pictures}.items():
        if others := source.describe_others():
            log.info("%s: not taken as images: %s", place, others)
    if on_bad_image == "skip":
        data = without_bad_images(data)
        if extra is not None:
            sound = _sound_part(extra, data.class_name)
            data, extra = replace(data, skipped=data.skipped + len(extra) - len(sound)), sound
    else:
        data, extra = replace(data, train=data.train.needed(), test=data.test.needed()), extra and extra.needed()
    if data.card.padding is not None:
        data = replace(data, train=_held(data.train), test=_held(data.test))
    if val_fraction:
        held_out = _subset(data, val_fraction, "--val-fraction")
        train, val = (data.train.part(np.flatnonzero(chosen)) for chosen in (~held_out, held_out))
        data = replace(data, train=train, val=val)
    if train_fraction < 1:
        chosen = _subset(data, train_fraction, "--train-fraction") if train_fraction else np.zeros(len(data.train))
        data = replace(data, train=data.train.part(np.flatnonzero(chosen)))
    return data if extra is None else append_unlabelled(data, extra, MAX_BYTES_IN_MEMORY)


def read(
    name: str,
    *,
    root: Path = Path("datasets"),
    image_size: int | None = None,
    crop: str | None = None,
    download: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Read a dataset as it is: no image file is decoded, and none is left out. See `load`."""
    from kdcache.datasets.workers import default_workers

    workers, name = default_workers() if workers is None else workers, NAMED.get(name, name)
    if download:
        from kdcache.datasets.fetch import fetch

        fetch(name, expanded(root))
    if name.startswith(HDF5_PREFIX) and name != HDF5_PREFIX:
        from kdcache.datasets import packed

        data = packed.load_file(canonical(name), image_size, workers, crop)
    elif name.startswith(HF_PREFIX) and name != HF_PREFIX:
        from kdcache.datasets import hugging_face

        data = hugging_face.load(canonical(name), expanded(root), image_size, workers, crop)
    elif name.startswith(TORCHVISION_PREFIX) and name != TORCHVISION_PREFIX:
        from kdcache.datasets import torchvision_sets

        data = custom.build(name, torchvision_sets.read(name, expanded(root)), image_size, workers, crop)
    elif is_address(name := CUSTOM_DATASETS.address(name)):
        data = custom.load(name, image_size, workers, crop)
    else:
        card, root = card_of(name, image_size, crop), expanded(root)
        reader = import_module(f"kdcache.datasets.{card.reader}")  # torchvision alone takes seconds to import
        data = reader.load(card, root, workers)
    check_class_names(data.class_names, name)
    return replace(data, train=data.train.limited(max_pixels), test=data.test.limited(max_pixels))


def list_available(root: Path) -> list[str]:
    """List the datasets that can be read without a download: the shipped one, and those in a folder."""
    root = expanded(root)
    named = [
        name
        for name, card in CARDS.items()
        if not card.folders or any((root / folder).is_dir() for folder in card.folders)
    ]
    known = {root / folder for card in CARDS.values() for folder in card.folders}
    own = sorted({path.parent for path in root.glob("*/train") if path.is_dir()} - known)
    return [*named, *(f"{FOLDER_PREFIX}{path}" for path in own)]


def without_bad_images(data: Dataset) -> Dataset:
    """Leave out the images that cannot be decoded. Images that were not checked before are decoded once.

    Raises
    ------
    UsageError
        If no image of a class is left.
    """
    train, test = (_sound_part(split, data.class_name) for split in (data.train, data.test))
    skipped = len(data.train) + len(data.test) - len(train) - len(test)
    return replace(data, train=train, test=test, skipped=skipped)


def _sound_part(split: Split, class_name: Callable[[int], str]) -> Split:
    if split.pictures is None:
        return split
    from kdcache.datasets.manifest import Manifest

    pictures, manifest = split.pictures, Manifest.load(split.pictures)
    manifest.update(decode_all=True)
    bad = np.isin(pictures.indices, manifest.bad)
    labels = split.labels.numpy()
    if lost := [class_name(label) for label in np.setdiff1d(labels, labels[~bad])]:
        what, got = f"images of {pictures.source.place}", f"none of {abbreviated(lost, MAX_NAMES_LISTED)}"
        raise UsageError(problem(what, expected="at least one of each class that can be decoded", got=got))
    if count := len(manifest.bad):
        found = "1 image" if count == 1 else f"{count} images"
        names = abbreviated(map(pictures.source.name, manifest.bad.tolist()), MAX_BAD_IMAGES_LISTED)
        log.warning("left out: %s of %s that cannot be decoded: %s", found, pictures.source.place, names)
    return split.part(np.flatnonzero(~bad)) if bad.any() else split


def _held(split: Split) -> Split:
    return split.hold() if 3 * len(split) * split.image_size**2 <= MAX_BYTES_IN_MEMORY else split


def _subset(data: Dataset, fraction: float, option: str) -> np.ndarray:
    """Choose a fraction of each class, rounded, at least one image and not all: bool (N,)."""
    labels = data.train.labels.numpy()
    chosen = np.zeros(len(labels), bool)
    order = np.random.Generator(np.random.Philox(SUBSET_KEY)).permutation(len(labels))
    for label in range(data.num_classes):
        of_class = order[labels[order] == label]
        count = max(1, round(fraction * len(of_class)))
        if count >= len(of_class):
            what = f"{option} {fraction}: training images of class {data.class_names[label]}"
            raise UsageError(problem(what, expected=f"more than {count}", got=len(of_class)))
        chosen[of_class[:count]] = True
    return chosen
