"""Datasets of the user's own code: a function that returns `ImageData`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.cards import Card, card_of, check_normalization, cropped
from kdcache.choices import FOLDER_PREFIX
from kdcache.datasets.split import Dataset, Split
from kdcache.errors import UsageError, first_line, problem
from kdcache.extensions import call

__all__ = ["ImageData", "build", "load"]


@dataclass(frozen=True)
class ImageData:
    """What a dataset consists of. Its content is hashed, so it does not matter which code returned it.

    Parameters
    ----------
    class_names : sequence of str
    train, test : tuple
        Images and their labels. Images are an array (N, H, W, 1 or 3) of uint8, or the paths of N image files, which
        are decoded when they are needed and resized to ``--image-size``. Labels are N integers, from 0.
    mean, std : tuple of float, optional
        Per channel (red, green, blue) over the training images, on a scale of 0 to 1; by default those of ImageNet.
    """

    class_names: Sequence[str]
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def load(name: str, image_size: int | None, workers: int, crop: str | None = None) -> Dataset:
    """Call the function that a name leads to, and make a dataset of what it returns.

    Raises
    ------
    UsageError
        If the code is not trusted or fails, or its images or labels are of another form.
    """
    return build(name, call("dataset", name, (ImageData, "a kdcache.ImageData")), image_size, workers, crop)


def build(name: str, found: ImageData, image_size: int | None, workers: int, crop: str | None = None) -> Dataset:
    """Make a dataset of images and labels; the errors are those of `load`."""
    names = tuple(map(str, found.class_names))
    images = [_images(name, part, pair) for part, pair in (("train", found.train), ("test", found.test))]
    arrays = [one for one in images if isinstance(one, np.ndarray)]
    if len(arrays) == 1:
        raise UsageError(problem(f"dataset {name}", expected="arrays or paths in both parts", got="one of each"))
    size = image_size
    if arrays:
        size = max(side for array in arrays for side in array.shape[1:3])
        if image_size not in (None, size):
            raise UsageError(problem(f"image size of {name}, which returns arrays", expected=size, got=image_size))
    card = card_of(f"{FOLDER_PREFIX}{name}", size, "padded" if arrays else crop)
    card = cropped(replace(card, name=name, classes=len(names), source=name), crop)
    mean, std = (
        stated if values is None else check_normalization(f"{what} of dataset {name}", values, what == "std")
        for what, values, stated in (("mean", found.mean, card.mean), ("std", found.std, card.std))
    )
    card = replace(card, mean=mean, std=std)
    labels = [_labels(f"{part} of dataset {name}", getattr(found, part)[1]) for part in ("train", "test")]
    train, test = _splits(name, card, images, labels, workers)
    return Dataset(card, names, train, test)


def _images(name: str, part: str, pair: Any) -> np.ndarray | list[Path]:
    if isinstance(pair, tuple) and len(pair) == 2:
        images = pair[0]
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return images
        if isinstance(images, Sequence) and images and all(isinstance(path, str | Path) for path in images):
            return [Path(os.path.abspath(os.path.expanduser(path))) for path in images]
    expected = "images and labels: an array (N, H, W, C) of uint8, or a list of paths; and N integers"
    raise UsageError(problem(f"{part} of dataset {name}", expected=expected, got=_form(pair)))


def _labels(place: str, labels: Any) -> np.ndarray:
    try:
        return np.asarray(labels)
    except Exception as error:  # which depends on what is in them, such as lists of several lengths
        got = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(problem(f"labels of {place}", expected="N integers", got=got)) from error


def _form(value: Any) -> str:
    return f"a tuple of {', '.join(type(one).__name__ for one in value)}" if isinstance(value, tuple) else str(value)


def _splits(name: str, card: Card, images: Sequence[Any], labels: Sequence[np.ndarray], workers: int) -> list[Split]:
    from kdcache.datasets.arrays import check_labels, make_split
    from kdcache.datasets.listing import picture_split
    from kdcache.datasets.sources import Files

    places = [f"{part} of dataset {name}" for part in ("train", "test")]
    if isinstance(images[0], np.ndarray):
        return [make_split(*part) for part in zip(places, (card, card), images, labels, strict=True)]
    for place, paths, own in zip(places, images, labels, strict=True):
        check_labels(place, card, own, len(paths))
    # One source of the files of both parts: the hashes of a source are kept in one file.
    paths = [*images[0], *images[1]]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    whole = Files.of(root, [os.fsencode(path.relative_to(root)) for path in paths])
    split = picture_split(whole, np.concatenate(labels), card, workers)
    is_train = np.arange(len(paths)) < len(images[0])
    return [split.part(np.flatnonzero(chosen)) for chosen in (is_train, ~is_train)]
