"""A dataset of the user's own: a folder of image files for each class."""

import difflib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from kdcache.cards import Card
from kdcache.choices import FOLDER_PREFIX
from kdcache.datasets.class_names import check_class_names
from kdcache.datasets.listing import MAX_NAMES_LISTED, class_folders, pictures_by_class
from kdcache.datasets.sources import Files
from kdcache.datasets.split import Dataset
from kdcache.errors import UsageError, abbreviated, problem

__all__ = ["TEST_FOLDERS", "TRAIN_FOLDERS", "choose_test", "load", "read_parts"]

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("val", "valid", "validation", "test", "testing")
"""Names of the folders of the training and the test set, in any case; the first one that exists is read."""

EXPECTED = "train and val or test"

TEST_SHARE, TEST_KEY = 0.2, b"kdcache test images"
"""Share of each class that becomes the test set of a dataset without one, and the key that chooses it."""

log = logging.getLogger("kdcache")


def load(card: Card, root: Path, workers: int) -> Dataset:
    """List the images of a folder; `root` is not used.

    Parameters
    ----------
    card : Card
        Its name is ``folder:PATH``. PATH contains a folder of `TRAIN_FOLDERS` and one of `TEST_FOLDERS`, each with the
        same folders, one for each class. Without the latter, or with folders of classes alone, a fifth of each class
        becomes the test set. The classes are numbered in alphabetical order.

    Raises
    ------
    UsageError
        If a folder is missing or empty, the classes differ, or there are fewer than two.
    """
    path = Path(card.name.removeprefix(FOLDER_PREFIX))
    if not os.path.isdir(path):  # unlike is_dir, also where the name is too long to exist
        beside = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        similar = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.8)
        meant = f"Did you mean {FOLDER_PREFIX}{path.parent / similar[0]}? " if similar else ""
        remedy = f"{meant}If it was moved, name its place with --dataset."
        raise UsageError(problem(f"dataset folder {path} does not exist", remedy=remedy))
    folders = class_folders(path)
    train, test = _find(folders, TRAIN_FOLDERS), _find(folders, TEST_FOLDERS)
    if test is not None or (train is None and len(folders) < 2):
        return read_parts(path, card, workers)
    if train is None and (inner := [name for name in folders if _find(class_folders(path / name), TRAIN_FOLDERS)]):
        remedy = f"Did you mean {FOLDER_PREFIX}{path / inner[0]}?"
        raise UsageError(problem(f"folders of {path}", expected=EXPECTED, got="datasets", remedy=remedy))
    unread = [] if train is None else sorted(set(folders) - {train})
    return _read_and_split(path / (train or "."), unread, card, workers)


def read_parts(path: Path, card: Card, workers: int) -> Dataset:
    """List the images of a training and a test set. Classes are named after their folders."""
    folders = class_folders(path)
    train_name, test_name = _find(folders, TRAIN_FOLDERS), _find(folders, TEST_FOLDERS)
    if train_name is None or test_name is None:
        present = abbreviated(folders, MAX_NAMES_LISTED)
        raise UsageError(problem(f"folders of {path}", expected=EXPECTED, got=present or "none"))
    train, test = path / train_name, path / test_name
    if unread := [name for name in folders if name.lower() in TEST_FOLDERS and name != test_name]:
        log.info("%s: the test set is %s; not read: %s", path, test_name, ", ".join(unread))
    classes, test_classes = class_folders(train), class_folders(test)
    check_class_names([*classes, *test_classes], path)
    if odd := set(classes) ^ set(test_classes):
        expected, only = f"the same in {train_name} and {test_name}", abbreviated(odd, MAX_NAMES_LISTED)
        raise UsageError(problem(f"class folders of {path}", expected=expected, got=f"only in one of them: {only}"))
    _check_classes(train, classes)
    listings = [pictures_by_class(part, classes, card, workers) for part in (train, test)]
    return Dataset(replace(card, classes=len(classes)), tuple(classes), train=listings[0], test=listings[1])


def _read_and_split(part: Path, unread: list[str], card: Card, workers: int) -> Dataset:
    """List the images of all classes, and make a fifth of each the test set."""
    classes = class_folders(part)
    _check_classes(part, classes)
    whole = pictures_by_class(part, classes, card, workers)
    assert whole.pictures is not None
    files = whole.pictures.source
    assert isinstance(files, Files)
    is_test = choose_test(whole.labels.numpy(), classes, map(files.relative_path, range(len(files))), files.root)
    train, test = (whole.part(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    log.info(
        "%s has no test set: %d of its %d images, the same ones in every run, are the test set%s",
        part.parent if unread else part,
        *(len(test), len(whole)),
        f"; not read: {abbreviated(unread, MAX_NAMES_LISTED)}" if unread else "",
    )
    return Dataset(replace(card, classes=len(classes)), tuple(classes), train, test)


def choose_test(labels: np.ndarray, classes: Sequence[str], names: Iterable[bytes], where: object) -> np.ndarray:
    """Choose the test images of a dataset without a test set: bool (N,).

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
    classes : sequence of str
    names : iterable of bytes
        Of each image. Those of each class with the smallest hashes are chosen: a new image moves few of the others.
    where : object
        The dataset, for messages.

    Raises
    ------
    UsageError
        If a class has a single image.
    """
    hashes = b"".join(sha256(TEST_KEY + name).digest()[:8] for name in names)
    order = np.lexsort((np.frombuffer(hashes, ">u8"), labels))
    counts = np.bincount(labels, minlength=len(classes))
    if (counts < 2).any():
        few = abbreviated((classes[label] for label in np.flatnonzero(counts < 2).tolist()), MAX_NAMES_LISTED)
        raise UsageError(problem(f"classes of {where}, which has no test set", expected="at least 2 images", got=few))
    wanted = np.maximum(1, np.rint(TEST_SHARE * counts)).astype(int)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.empty(len(order), bool)
    chosen[order] = rank < np.repeat(wanted, counts)
    return chosen


def _find(folders: list[str], names: tuple[str, ...]) -> str | None:
    """Find the first of some names among folders, spelled in lower case if both spellings are there."""
    return next((folder for name in names for folder in sorted(folders, reverse=True) if folder.lower() == name), None)


def _check_classes(part: Path, classes: list[str]) -> None:
    if len(classes) < 2:
        got = f"{len(classes)} ({classes[0]})" if classes else "none"
        raise UsageError(problem(f"class folders of {part}", expected="at least 2", got=got))
