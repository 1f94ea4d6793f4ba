"""Tiny ImageNet: as Stanford distributes it, and as the paper's authors repacked it."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.datasets import Dataset, Split
from kdcache.datasets.arrays import make_split
from kdcache.datasets.cards import Card
from kdcache.datasets.listing import class_folders, class_names, comma_list, picture_split, pictures_by_class, unpacked
from kdcache.datasets.pictures import Files
from kdcache.errors import UsageError, first_line, problem

__all__ = ["load"]

BATCH = "batch.npy"


def load(card: Card, root: Path, workers: int) -> Dataset:
    """Read Tiny ImageNet. Its validation set is the test set, as in the paper: the labels of its test set are secret.

    Parameters
    ----------
    card : Card
    root : Path
        Holds ``tiny-imagenet-200``, or is it: ``wnids.txt``, ``words.txt``, ``train/<wnid>/images``, and ``val`` with
        ``images`` and ``val_annotations.txt``. Classes are numbered in alphabetical order of their WordNet IDs. Or it
        holds ``tinyimagenet``, or is it, with ``train/batch.npy`` and ``val/batch.npy``, the authors' form.
    workers : int

    Raises
    ------
    UsageError
        If something is missing or does not fit.
    """
    for place in (*(root / folder for folder in card.folders), root):
        if (place / "train" / BATCH).is_file():
            train, val = (_of_batch(place / part / BATCH, card) for part in ("train", "val"))
            return Dataset(card, tuple(f"class {label}" for label in range(card.classes or 0)), train, val)
    path = unpacked(root, card, "wnids.txt", "fetches")
    classes = sorted((path / "wnids.txt").read_text("utf-8").split())
    if len(classes) != card.classes:
        raise UsageError(problem(f"{path / 'wnids.txt'}", expected=f"{card.classes} classes", got=len(classes)))
    for part in ("train", "val/images"):
        if not (path / part).is_dir():
            raise UsageError(problem(f"{path / part}", expected="an existing folder", got="none"))
    if missing := set(classes) - set(class_folders(path / "train")):
        allowed = "a folder for each class of wnids.txt"
        raise UsageError(problem(f"{path / 'train'}", expected=allowed, got=f"none for {comma_list(missing)}"))
    train = pictures_by_class(path / "train", classes, card, workers)
    return Dataset(card, class_names([path / "words.txt"], classes), train, _annotated(path, classes, card, workers))


def _annotated(path: Path, classes: list[str], card: Card, workers: int) -> Split:
    """List the validation pictures in the order of their annotations."""
    annotations = path / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise UsageError(problem(f"{annotations}", expected="an existing file", got="none"))
    numbered = {wnid: label for label, wnid in enumerate(classes)}
    names, labels = [], []
    for line, text in enumerate(annotations.read_text("utf-8").splitlines(), 1):
        words = text.split("\t")
        if len(words) < 2 or words[1] not in numbered:
            allowed = "the name of a picture, a tab, and a class of wnids.txt"
            raise UsageError(problem(f"line {line} of {annotations}", expected=allowed, got=repr(text)))
        names.append(words[0])
        labels.append(numbered[words[1]])
    if not names:
        raise UsageError(problem(f"{annotations}", expected="a line for each picture", got="none"))
    images = path / "val" / "images"
    if absent := set(names) - set(os.listdir(images)):
        raise UsageError(
            problem(f"{images}", expected="all pictures of the annotations", got=f"no {comma_list(absent)}")
        )
    return picture_split(Files.of(images, map(os.fsencode, names)), np.array(labels), card, workers)


def _of_batch(path: Path, card: Card) -> Split:
    """Read the authors' form: an array of objects, each a pair of an image, (H, W, 3) uint8, and its label."""
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
        raise UsageError(problem(f"{path}", expected="an existing file", got="none")) from None
    except Exception as error:  # a pickle that is none, or of something else, fails in many ways
        allowed = "an array of pairs (image, label), of numpy's types alone"
        raise UsageError(problem(f"cannot read {path}", expected=allowed, got=first_line(error))) from error
    if images.shape[1:] != (card.image_size, card.image_size, 3):
        allowed = f"(N, {card.image_size}, {card.image_size}, 3)"
        raise UsageError(problem(f"images of {path}", expected=allowed, got=str(images.shape)))
    return make_split(path, card, images, labels)


class _Arrays(pickle.Unpickler):
    """Unpickles arrays and numbers of numpy's, and nothing that could run code."""

    ALLOWED = frozenset(
        (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
    ALLOWED |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}

    def find_class(self, module: str, name: str) -> Any:
        """Find one of the few names that are allowed."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
