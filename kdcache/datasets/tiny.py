"""Tiny ImageNet, as Stanford distributes it, and as the authors of the paper repacked it."""

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.cards import Card
from kdcache.datasets.arrays import make_split
from kdcache.datasets.listing import (
    MAX_NAMES_LISTED,
    class_folders,
    class_names,
    find_folder,
    picture_split,
    pictures_by_class,
)
from kdcache.datasets.sources import Files
from kdcache.datasets.split import Dataset, Split
from kdcache.errors import UsageError, abbreviated, first_line, problem
from kdcache.files import read_text

__all__ = ["load"]

BATCH = "batch.npy"


def load(card: Card, root: Path, workers: int) -> Dataset:
    """Read Tiny ImageNet, with its validation set as the test set, as in the paper: its test labels are secret.

    Parameters
    ----------
    card : Card
    root : Path
        The folder of the dataset, or one that contains it. In Stanford's layout it has ``wnids.txt``, ``words.txt``,
        ``train/<wnid>/images``, and ``val`` with ``images`` and ``val_annotations.txt``; the validation images may
        have been sorted into a folder for each class. Classes are numbered in alphabetical order of their WordNet IDs.
        In the authors' layout it has ``train/batch.npy`` and ``val/batch.npy``.
    workers : int

    Raises
    ------
    UsageError
        If something is missing or inconsistent.
    """
    for place in (*(root / folder for folder in card.folders), root):
        if (place / "train" / BATCH).is_file():
            train, val = (_of_batch(place / part / BATCH, card) for part in ("train", "val"))
            return Dataset(card, tuple(f"class {label}" for label in range(card.classes or 0)), train, val)
    path = find_folder(root, card, "wnids.txt")
    classes = sorted(read_text(path / "wnids.txt").split())
    if len(classes) != card.classes:
        raise UsageError(problem(f"{path / 'wnids.txt'}", expected=f"{card.classes} classes", got=len(classes)))
    _check_folders(path / "train", classes)
    train = pictures_by_class(path / "train", classes, card, workers)
    return Dataset(card, class_names([path / "words.txt"], classes), train, _validation(path, classes, card, workers))


def _check_folders(part: Path, classes: list[str]) -> None:
    if not part.is_dir():
        raise UsageError(problem(f"folder {part} does not exist"))
    if missing := set(classes) - set(class_folders(part)):
        expected, absent = "a folder for each class of wnids.txt", abbreviated(missing, MAX_NAMES_LISTED)
        raise UsageError(problem(str(part), expected=expected, got=f"none for {absent}"))


def _validation(path: Path, classes: list[str], card: Card, workers: int) -> Split:
    """List the validation images, which may have been sorted into a folder for each class, here or there."""
    for place in (path / "val", path / "val" / "images"):
        if place.is_dir() and set(classes) & set(class_folders(place)):
            _check_folders(place, classes)
            return pictures_by_class(place, classes, card, workers)
    return _annotated(path, classes, card, workers)


def _annotated(path: Path, classes: list[str], card: Card, workers: int) -> Split:
    """List the validation images in the order of their annotations."""
    annotations, images = path / "val" / "val_annotations.txt", path / "val" / "images"
    for place, exists in ((images, images.is_dir()), (annotations, annotations.is_file())):
        if not exists:
            raise UsageError(problem(f"{place} does not exist"))
    numbered = {wnid: label for label, wnid in enumerate(classes)}
    names, labels = [], []
    for line, text in enumerate(read_text(annotations).rstrip().splitlines(), 1):
        words = text.split("\t")
        if len(words) < 2 or words[1] not in numbered:
            expected = "the name of an image, a tab, and a class of wnids.txt"
            raise UsageError(problem(f"line {line} of {annotations}", expected=expected, got=repr(text)))
        names.append(words[0])
        labels.append(numbered[words[1]])
    if not names:
        raise UsageError(problem(f"{annotations}", expected="a line for each image", got="none"))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        got = f"several for {abbreviated(twice, MAX_NAMES_LISTED)}"
        raise UsageError(problem(f"{annotations}", expected="a line for each image", got=got))
    present = set(os.listdir(images))
    if absent := set(names) - present:
        raise UsageError(
            problem(f"images of {annotations} missing in {images}", got=abbreviated(absent, MAX_NAMES_LISTED))
        )
    others = Counter({"without an annotation": len(present - set(names))})
    return picture_split(Files.of(images, map(os.fsencode, names), +others), np.array(labels), card, workers)


def _of_batch(path: Path, card: Card) -> Split:
    """Read a file of the authors: an array of objects, each a pair of an image, (H, W, 3) uint8, and its label."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            _, _, kind = read_header[version](file)
            if kind != np.dtype(object):
                raise ValueError(f"an array of {kind}")
            pairs = _Arrays(file).load()
        images = np.stack([np.asarray(image) for image, _ in pairs])
        labels = np.array([int(label) for _, label in pairs])
    except FileNotFoundError:
        raise UsageError(problem(f"{path} does not exist")) from None
    except Exception as error:  # damaged pickles fail in many ways
        expected = "an array of pairs (image, label) of NumPy's types"
        raise UsageError(problem(f"could not read {path}", expected=expected, got=first_line(error))) from error
    if images.shape[1:] != (card.image_size, card.image_size, 3):
        expected = f"(N, {card.image_size}, {card.image_size}, 3)"
        raise UsageError(problem(f"shape of the images of {path}", expected=expected, got=str(images.shape)))
    return make_split(path, card, images, labels)


class _Arrays(pickle.Unpickler):
    """Unpickles NumPy arrays and scalars, and nothing that could run code."""

    ALLOWED = frozenset(
        (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
    ALLOWED |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}

    def find_class(self, module: str, name: str) -> Any:
        """Import one of the few allowed names."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"a reference to {module}.{name}")
        return super().find_class(module, name)
